/* Vectors of WIDTH floats and the elementary functions of a Mamba layer on them.
 *
 * One source for every instruction set: the including file sets the compiler's target first. Vector
 * extensions of GCC and Clang do the arithmetic; intrinsics stand only where AVX-512 has an
 * instruction that they cannot name.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define WIDTH 16
#define HAS_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WIDTH 8
#else
#define WIDTH 4
#endif

#define ALIGNED 64
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef float vec_anywhere __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const vec_anywhere *)from; }
INLINE void store(float *to, vec value) { *(vec_anywhere *)to = value; }
/* value - 0 is value, -0 too, so that the compiler broadcasts and does not add. */
INLINE vec splat(float value) { return value - (vec){0}; }

/* Every row is as long as a multiple of the widest vector, whatever the variant: what the forward
 * pass saves has the same layout everywhere. */
INLINE size_t padded_to(size_t count, size_t unit) { return (count + unit - 1) / unit * unit; }
INLINE size_t padded(size_t count) { return padded_to(count, 16); }

/* Keep a value in a register: without it GCC reads a broadcast number from memory once a use. */
#if defined(HAS_AVX512)
#define IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__x86_64__)
#define IN_REGISTER(value) __asm__("" : "+x"(value))
#else
#define IN_REGISTER(value) ((void)0)
#endif

/* A range of channels, in whole vectors. */
typedef struct {
    size_t first, end;
} Lanes;

INLINE vec larger(vec a, vec b) {
#ifdef HAS_AVX512
    return (vec)_mm512_max_ps((__m512)b, (__m512)a);
#else
    ivec b_wins = a < b;
    return (vec)((b_wins & (ivec)b) | (~b_wins & (ivec)a));
#endif
}

INLINE vec smaller(vec a, vec b) { return -larger(-a, -b); }

INLINE float lane_sum(vec value) {
#ifdef HAS_AVX512
    return _mm512_reduce_add_ps((__m512)value);
#else
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += value[i];
    return sum;
#endif
}

/* 2^(a b), any finite a b; relative error below 2e-7. */
#ifdef HAS_AVX512
/* 2^(i + j/16 + f) = 2^i T[j] p(f), |f| <= 1/32. Adding SHIFTER rounds to 1/16 and leaves j in the
 * lowest four bits. The slope of p at 0 is exact: where a step is short, what counts is 1 - decay. */
#define SHIFTER 786432.0f
typedef struct { __m512 values; } Exp2Table;

INLINE Exp2Table exp2_table(void) {
    static const float T[16] = {
        1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f,
        1.24185777f, 1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f,
        1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f,
        1.91520655f};
    return (Exp2Table){_mm512_loadu_ps(T)};
}

INLINE vec exp2_of_product(vec a, vec b, Exp2Table table) {
    vec shifted = a * b + SHIFTER;
    vec rounded = shifted - SHIFTER;
    vec f = a * b - rounded;
    vec p = ((f * 0.0555052483f + 0.240234336f) * f + 0.693147181f) * f + 1.0f;
    vec power = (vec)_mm512_permutexvar_ps((__m512i)shifted, table.values);
    return (vec)_mm512_scalef_ps((__m512)(power * p), (__m512)rounded);
}
#else
typedef struct { int unused; } Exp2Table;

INLINE Exp2Table exp2_table(void) { return (Exp2Table){0}; }

INLINE vec exp2_of_product(vec a, vec b, Exp2Table table) {
    (void)table;
    vec x = smaller(larger(a * b, splat(-126.0f)), splat(127.0f));
    vec shifted = x + 12582912.0f;
    vec f = x - (shifted - 12582912.0f);
    vec p = splat(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}
#endif

#define LOG2_E 1.44269504088896341f
#define LN_2 0.69314718055994531f

INLINE vec exp_of(vec x) { return exp2_of_product(x, splat(LOG2_E), exp2_table()); }

/* 1 / x for 1 <= x. */
INLINE vec reciprocal(vec x) {
#ifdef HAS_AVX512
    vec guess = (vec)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

/* exp(-x) is kept finite, so that the reciprocal's correction is. */
INLINE vec sigmoid(vec x) { return reciprocal(1.0f + exp_of(-larger(x, splat(-80.0f)))); }

INLINE vec silu(vec x) { return x * sigmoid(x); }

/* log(1 + e), 0 <= e <= 1: e times a polynomial fitted to log(1 + e) / e, relative error 2e-7. */
INLINE vec log1p_of(vec e) {
    vec p = splat(5.232665115e-3f);
    p = p * e - 2.950512157e-2f;
    p = p * e + 7.822576025e-2f;
    p = p * e - 1.366322946e-1f;
    p = p * e + 1.910599904e-1f;
    p = p * e - 2.484298023e-1f;
    p = p * e + 3.331909656e-1f;
    p = p * e - 4.999949313e-1f;
    p = p * e + 9.999999699e-1f;
    return p * e;
}

INLINE vec softplus(vec x) {
    vec magnitude = larger(x, -x);
    return larger(x, splat(0.0f)) + log1p_of(exp_of(-magnitude));
}

/* The slope of softplus is the sigmoid, and both need exp(-|x|). */
INLINE vec softplus_and_slope(vec x, vec *slope) {
    vec magnitude = larger(x, -x), e = exp_of(-magnitude);
    ivec negative = x < 0.0f;
    vec numerator = (vec)((negative & (ivec)e) | (~negative & (ivec)splat(1.0f)));
    *slope = numerator * reciprocal(1.0f + e);
    return larger(x, splat(0.0f)) + log1p_of(e);
}
