# Which CUDA toolkits compile csrc/cuda: 12.5 is the first with cudaGetDriverEntryPointByVersion, which finds
# the maker of tensor maps (arch/tma.h); cudaFuncGetName came with 12.3, kernel parameters of more than 4 KB
# with 12.1. Blackwell (sm_100, sm_120) came with 12.8.
function(afnext_check_toolkit version archs)
  set(needed 12.5)
  string(REGEX REPLACE "[^0-9;]" "" numbers "${archs}")
  foreach(number ${numbers})
    if(number GREATER_EQUAL 100)
      set(needed 12.8)
    endif()
  endforeach()
  if(version VERSION_LESS needed)
    message(FATAL_ERROR "CUDA kernels for ${archs} need CUDA toolkit ${needed} or newer, found ${version}")
  endif()
endfunction()
