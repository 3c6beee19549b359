#include "kernels.h"
#ifdef WITH_AMX
#define AMX_TARGET \
    "amx-tile,amx-bf16,avx512bf16,avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(AMX_TARGET))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512dq,avx512vl,avx512bw,avx2,fma," \
                   "prefer-vector-width=512")
#endif
#define VARIANT amx
#include "variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
