# Which instruction sets the compiler can target, and how one kernel is compiled for several of them.
include(CheckCXXCompilerFlag)

set(AFNEXT_ISA_FLAGS_baseline "")
set(AFNEXT_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
set(AFNEXT_ISA_FLAGS_avx_vnni ${AFNEXT_ISA_FLAGS_avx2} -mavxvnni)
set(AFNEXT_ISA_FLAGS_avx512 ${AFNEXT_ISA_FLAGS_avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl
    -mavx512vnni -mprefer-vector-width=512)
set(AFNEXT_ISA_FLAGS_avx512_bf16 ${AFNEXT_ISA_FLAGS_avx512} -mavx512bf16)
set(AFNEXT_ISA_FLAGS_amx ${AFNEXT_ISA_FLAGS_avx512_bf16} -mamx-tile -mamx-int8 -mamx-bf16)

set(AFNEXT_ISA_LANES_baseline 4)
set(AFNEXT_ISA_LANES_avx2 8)
set(AFNEXT_ISA_LANES_avx_vnni 8)
set(AFNEXT_ISA_LANES_avx512 16)
set(AFNEXT_ISA_LANES_avx512_bf16 16)
set(AFNEXT_ISA_LANES_amx 16)

set(AFNEXT_ISAS baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  foreach(isa avx2 avx_vnni avx512 avx512_bf16 amx)
    string(REPLACE ";" " " flags "${AFNEXT_ISA_FLAGS_${isa}}")
    set(CMAKE_REQUIRED_FLAGS "${flags}")
    check_cxx_source_compiles("int main() { return 0; }" AFNEXT_COMPILES_${isa})
    unset(CMAKE_REQUIRED_FLAGS)
    if(AFNEXT_COMPILES_${isa} AND NOT isa IN_LIST AFNEXT_DISABLED_ISAS)
      list(APPEND AFNEXT_ISAS ${isa})
    endif()
  endforeach()
endif()
message(STATUS "afnext: the compiler targets ${AFNEXT_ISAS}")

# afnext_cpu_kernel(<name> <isa>...): compiles csrc/cpu/<name>.cpp into the library once for each
# level that the compiler has.
function(afnext_cpu_kernel name)
  foreach(isa ${ARGN})
    if(isa IN_LIST AFNEXT_ISAS)
      set_property(GLOBAL APPEND PROPERTY AFNEXT_KERNELS "${name}/${isa}")
      set(object afnext_${name}_${isa})
      add_library(${object} OBJECT csrc/cpu/${name}.cpp)
      target_include_directories(${object} PRIVATE csrc/include csrc)
      target_compile_features(${object} PRIVATE cxx_std_20)
      target_compile_definitions(${object} PRIVATE AFNEXT_ISA=${isa}
                                                   AFNEXT_LANES=${AFNEXT_ISA_LANES_${isa}})
      target_compile_options(${object} PRIVATE ${AFNEXT_CXX_FLAGS} -ffp-contract=fast
                                               -fno-math-errno -fno-trapping-math -Wno-psabi
                                               ${AFNEXT_ISA_FLAGS_${isa}})
      set_target_properties(${object} PROPERTIES POSITION_INDEPENDENT_CODE ON)
      target_sources(afnext_core PRIVATE $<TARGET_OBJECTS:${object}>)
    endif()
  endforeach()
endfunction()

# afnext_list_kernels(): adds a source that names every kernel. A linker takes from a static library
# only what something names, and a kernel that registers itself is named by nobody else.
function(afnext_list_kernels)
  get_property(kernels GLOBAL PROPERTY AFNEXT_KERNELS)
  set(declarations "")
  set(entries "")
  foreach(kernel ${kernels})
    string(REGEX MATCH "(.*)/(.*)" _ ${kernel})
    set(name ${CMAKE_MATCH_1})
    set(isa ${CMAKE_MATCH_2})
    string(APPEND declarations
           "namespace ${isa} { extern KernelRegistration ${name}_registration; }\n")
    string(APPEND entries "    {\"${name}\", Isa::${isa}, &${isa}::${name}_registration},\n")
  endforeach()
  configure_file(cmake/kernels.cpp.in kernels.cpp @ONLY)
  target_sources(afnext_core PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/kernels.cpp)
endfunction()
