// bfloat16 x and packed weights on AMX tiles.
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/amx/tile_kernel.h"

namespace afnext::cpu::AFNEXT_ISA {

void packed_linear_tiles(const PackedLinearArgs& args) {
  PackedProduct<TileKernel>(args, dense_steps(args.weight)).run();
}

AFNEXT_REGISTER(packed_linear_tiles, PackedLinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
