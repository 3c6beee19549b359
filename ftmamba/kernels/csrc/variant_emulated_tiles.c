/* The softmax on tiles in plain C, for machines without tiles to test it on; no layer. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#define EMULATED_TILES
#include "kernels.h"
#include "softmax_tiles.h"

const Variant variant_emulated_tiles = {.name = "emulated_tiles", .exponentials = exponentials,
                                        .softmax = softmax};
