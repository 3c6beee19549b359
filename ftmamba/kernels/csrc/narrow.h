/* Memory of float32 or bfloat16 behind one pair of functions; arithmetic is always in float32. */
#pragma once

#include "simd.h"

typedef uint16_t half_vec __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef uint32_t bits_vec __attribute__((vector_size(4 * WIDTH)));

INLINE vec widened(half_vec bits) { return (vec)(__builtin_convertvector(bits, bits_vec) << 16); }

/* To the nearest, ties to even. */
INLINE half_vec narrowed(vec value) {
#if defined(HAS_AVX512) && defined(__AVX512BF16__)
    return (half_vec)_mm512_cvtneps_pbh((__m512)value);
#else
    bits_vec bits = (bits_vec)value;
    bits += 0x7fff + ((bits >> 16) & 1);
    return __builtin_convertvector(bits >> 16, half_vec);
#endif
}

INLINE vec load_either(const void *from, size_t i, const int narrow) {
    return narrow ? widened(*(const half_vec *)((const uint16_t *)from + i))
                  : load((const float *)from + i);
}

INLINE void store_either(void *to, size_t i, vec value, const int narrow) {
    if (narrow) *(half_vec *)((uint16_t *)to + i) = narrowed(value);
    else store((float *)to + i, value);
}

/* The first `count` < WIDTH numbers, `rest` in the lanes beyond. */
INLINE vec load_some(const void *from, size_t i, size_t count, float rest, const int narrow) {
    size_t size = narrow ? 2 : 4;
    uint16_t halves[WIDTH] = {0};
    float values[WIDTH] = {0};
    memcpy(narrow ? (void *)halves : (void *)values, (const char *)from + i * size, count * size);
    vec value = narrow ? widened(*(half_vec *)halves) : load(values);
    for (size_t lane = count; lane < WIDTH; lane++) value[lane] = rest;
    return value;
}

INLINE void store_some(void *to, size_t i, size_t count, vec value, const int narrow) {
    size_t size = narrow ? 2 : 4;
    uint16_t halves[WIDTH];
    float values[WIDTH];
    if (narrow) *(half_vec *)halves = narrowed(value);
    else store(values, value);
    memcpy((char *)to + i * size, narrow ? (void *)halves : (void *)values, count * size);
}
