// bfloat16 x and plain weights on AMX tiles.
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/amx/tile_kernel.h"
#include "cpu/linear_panels.h"

namespace afnext::cpu::AFNEXT_ISA {

void linear_tiles(const LinearArgs& args) {
  linear_panels<bf16, TileKernel>(args, WeightFormat::bf16);
}

AFNEXT_REGISTER(linear_tiles, LinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
