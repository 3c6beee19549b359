/* The selective scan over one chunk of one row's tokens, and its gradient.
 *
 * h_t = exp(dt_t A) h_{t-1} + v_t B_t,  v_t = dt_t u_t,  y_t = C_t h_t   (Gu & Dao 2023, eq. 2)
 *
 * A vector holds WIDTH channels, so that no sum over the states crosses lanes; a group of GROUP
 * states stays in registers while the tokens pass. Memory is token-major: (T, E) with E a multiple
 * of WIDTH; states are (N, E) with N a multiple of GROUP.
 */
#pragma once

#include "simd.h"

#define GROUP 4
#define LONGEST_CHUNK 32

typedef struct {
    size_t tokens, channels, states;
    Lanes lanes;        /* the channels to work on */
    const float *decay; /* (states, channels): A log2(e) */
    const float *dt;    /* (tokens, channels) */
    const float *v;     /* (tokens, channels) */
    const float *B, *C; /* row t at B + t * stride; C is not read where no output is asked for */
    size_t stride;
} Chunk;

/* Advance `state` (N, E) over the chunk; write y (T, E) unless it is NULL. */
INLINE void scan_forward_group(const Chunk *chunk, const int group, const int with_y, size_t n,
                               float *state, float *y, const int add_y) {
    const Exp2Table table = exp2_table();
    size_t E = chunk->channels;
    for (size_t e = chunk->lanes.first; e < chunk->lanes.end; e += WIDTH) {
        vec h[16], A[16];
        UNROLL for (int m = 0; m < group; m++) {
            h[m] = load(state + (n + m) * E + e);
            A[m] = load(chunk->decay + (n + m) * E + e);
        }
        for (size_t t = 0; t < chunk->tokens; t++) {
            vec dt = load(chunk->dt + t * E + e), v = load(chunk->v + t * E + e);
            const float *B = chunk->B + t * chunk->stride + n, *C = chunk->C + t * chunk->stride + n;
            vec even = splat(0), odd = splat(0);
            if (with_y && add_y) even = load(y + t * E + e);
            UNROLL for (int m = 0; m < group; m++) {
                h[m] = exp2_of_product(dt, A[m], table) * h[m] + v * B[m];
                if (with_y && m % 2 == 0) even += h[m] * C[m];
                if (with_y && m % 2 == 1) odd += h[m] * C[m];
            }
            if (with_y) store(y + t * E + e, even + odd);
        }
        UNROLL for (int m = 0; m < group; m++) store(state + (n + m) * E + e, h[m]);
    }
}

#if defined(HAS_AVX512)
#define WIDE_GROUP 16
#else
#define WIDE_GROUP 8
#endif

static void scan_forward(const Chunk *chunk, float *state, float *y) {
    size_t n = 0;
    for (; n + WIDE_GROUP <= chunk->states; n += WIDE_GROUP) {
        if (!y) scan_forward_group(chunk, WIDE_GROUP, 0, n, state, y, 0);
        else if (n) scan_forward_group(chunk, WIDE_GROUP, 1, n, state, y, 1);
        else scan_forward_group(chunk, WIDE_GROUP, 1, n, state, y, 0);
    }
    for (; n < chunk->states; n += GROUP) {
        if (!y) scan_forward_group(chunk, GROUP, 0, n, state, y, 0);
        else if (n) scan_forward_group(chunk, GROUP, 1, n, state, y, 1);
        else scan_forward_group(chunk, GROUP, 1, n, state, y, 0);
    }
}

/* y (E) = C h for one token. */
static void scan_output(size_t channels, Lanes lanes, size_t states, const float *state,
                        const float *C, float *y) {
    for (size_t e = lanes.first; e < lanes.end; e += WIDTH) {
        vec sum = splat(0);
        for (size_t n = 0; n < states; n++) sum += load(state + n * channels + e) * C[n];
        store(y + e, sum);
    }
}

/* What the gradient of a chunk reads and writes beside the chunk itself. */
typedef struct {
    const float *before; /* (N, E): state ahead of the chunk */
    const float *dy;     /* (T, E), or (E) of the last token where only_last */
    int only_last;       /* the outputs of the other tokens were not used */
    float *carry;        /* (N, E): gradient that reaches the last state from later tokens; becomes
                            the one that reaches the state ahead of the chunk */
    float *y;            /* (T, E) recomputed; (E) where only_last */
    float *dv;           /* (T, E) */
    float *ddt;          /* (T, E): what reaches dt through the decay, times log2(e) */
    float *dB, *dC;      /* row t at dB + t * d_stride */
    size_t d_stride;
    float *d_decay;      /* (N, E), added to: gradient by A, not by `decay` */
} ScanGradient;

/* A vector whose lane i is the sum over the lanes of rows[i]. */
#if WIDTH == 16
#define SHUFFLE __builtin_shufflevector
INLINE vec sums_of_rows(const vec *rows) {
    vec a[8], b[4], c[2];
    UNROLL for (int i = 0; i < 8; i++) {
        vec x = rows[2 * i], y = rows[2 * i + 1];
        a[i] = SHUFFLE(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               SHUFFLE(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        vec x = a[2 * i], y = a[2 * i + 1];
        b[i] = SHUFFLE(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        vec x = b[2 * i], y = b[2 * i + 1];
        c[i] = SHUFFLE(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    return SHUFFLE(c[0], c[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(c[0], c[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
#else
INLINE vec sums_of_rows(const vec *rows) {
    vec sums;
    UNROLL for (int i = 0; i < WIDTH; i++) sums[i] = lane_sum(rows[i]);
    return sums;
}
#endif

#define PER_TOKEN (2 * GROUP) /* dB and dC of one group of states */

/* Lanes of the sums over the channels of dB and dC, [t][GROUP of dB, GROUP of dC]. */
typedef struct { vec rows[LONGEST_CHUNK * PER_TOKEN + 16]; } TokenSums;

INLINE void write_token_sums(const Chunk *chunk, const ScanGradient *gradient, size_t n,
                             TokenSums *sums) {
    float flat[LONGEST_CHUNK * PER_TOKEN + 32];
    size_t count = chunk->tokens * PER_TOKEN;
    for (size_t i = 0; i < count; i += WIDTH) store(flat + i, sums_of_rows(sums->rows + i));
    for (size_t t = 0; t < chunk->tokens; t++) {
        memcpy(gradient->dB + t * gradient->d_stride + n, flat + t * PER_TOKEN, 4 * GROUP);
        memcpy(gradient->dC + t * gradient->d_stride + n, flat + t * PER_TOKEN + GROUP, 4 * GROUP);
    }
}

/* One group of states, all channels: the states and decays of the chunk are computed again and kept
 * beside the registers, then the tokens pass backwards. */
INLINE void scan_backward_group(const Chunk *chunk, const ScanGradient *gradient, size_t n,
                                const int only_last, TokenSums *sums) {
    const Exp2Table table = exp2_table();
    const size_t E = chunk->channels, T = chunk->tokens, stride = chunk->stride;
    const float *B = chunk->B + n, *C = chunk->C + n;
    const int first = n == 0;
    for (size_t i = 0; i < T * PER_TOKEN; i++) sums->rows[i] = splat(0);
    for (size_t e = chunk->lanes.first; e < chunk->lanes.end; e += WIDTH) {
        const float *restrict dt = chunk->dt + e, *restrict v = chunk->v + e;
        float *restrict y = gradient->y + e, *restrict dv = gradient->dv + e;
        float *restrict ddt = gradient->ddt + e;
        vec states[LONGEST_CHUNK * GROUP], decays[LONGEST_CHUNK * GROUP];
        vec h[GROUP], A[GROUP], g[GROUP], dA[GROUP];
        UNROLL for (int m = 0; m < GROUP; m++) {
            h[m] = load(gradient->before + (n + m) * E + e);
            A[m] = load(chunk->decay + (n + m) * E + e);
            g[m] = load(gradient->carry + (n + m) * E + e);
            dA[m] = splat(0);
        }
        for (size_t t = 0; t < T; t++) {
            vec step = load(dt + t * E), input = load(v + t * E), output = splat(0);
            if (!only_last && !first) output = load(y + t * E);
            UNROLL for (int m = 0; m < GROUP; m++) {
                vec a = exp2_of_product(step, A[m], table);
                decays[t * GROUP + m] = a;
                states[t * GROUP + m] = h[m];
                h[m] = a * h[m] + input * B[t * stride + m];
                output += h[m] * C[t * stride + m];
            }
            if (!only_last) store(y + t * E, output);
        }
        if (only_last && gradient->dy) {
            const float *last_C = C + (T - 1) * stride;
            vec dy = load(gradient->dy + e), output = first ? splat(0) : load(y);
            UNROLL for (int m = 0; m < GROUP; m++) {
                output += h[m] * last_C[m];
                g[m] += dy * last_C[m];
                sums->rows[(T - 1) * PER_TOKEN + GROUP + m] += dy * h[m];
            }
            store(y, output);
        }
        for (size_t t = T; t-- > 0;) {
            vec step = load(dt + t * E), input = load(v + t * E);
            vec d_input = first ? splat(0) : load(dv + t * E);
            vec d_step = first ? splat(0) : load(ddt + t * E);
            vec dy = only_last ? splat(0) : load(gradient->dy + t * E + e);
            vec *row = sums->rows + t * PER_TOKEN;
            UNROLL for (int m = 0; m < GROUP; m++) {
                if (!only_last) {
                    g[m] += dy * C[t * stride + m];
                    row[GROUP + m] += dy * h[m];
                }
                row[m] += input * g[m];
                d_input += g[m] * B[t * stride + m];
                g[m] *= decays[t * GROUP + m];
                h[m] = states[t * GROUP + m];
                vec through_decay = g[m] * h[m];
                d_step += through_decay * A[m];
                dA[m] += through_decay * step;
            }
            store(dv + t * E, d_input);
            store(ddt + t * E, d_step);
        }
        UNROLL for (int m = 0; m < GROUP; m++) {
            store(gradient->carry + (n + m) * E + e, g[m]);
            float *d_decay = gradient->d_decay + (n + m) * E + e;
            store(d_decay, load(d_decay) + dA[m]);
        }
    }
    write_token_sums(chunk, gradient, n, sums);
}

static void scan_backward(const Chunk *chunk, const ScanGradient *gradient) {
    TokenSums sums;
    for (size_t n = 0; n < chunk->states; n += GROUP) {
        if (gradient->only_last) scan_backward_group(chunk, gradient, n, 1, &sums);
        else scan_backward_group(chunk, gradient, n, 0, &sums);
    }
}
