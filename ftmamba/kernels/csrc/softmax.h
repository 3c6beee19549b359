/* The exponentials of a softmax, in place: each row less its largest number. */
#pragma once

#include "kernels.h"
#include "narrow.h"

/* Below it an exponential is zero in float32; and infinity less infinity never comes up. */
#define LEAST_EXPONENT -104.0f

INLINE float lane_largest(vec value) {
    float largest = value[0];
    for (int i = 1; i < WIDTH; i++)
        if (!(value[i] <= largest)) largest = value[i];
    return largest;
}

INLINE float row_largest(const void *x, size_t start, size_t columns, const int narrow) {
    vec first = splat(-__builtin_inff()), second = first;
    size_t i = 0;
    for (; i + 2 * WIDTH <= columns; i += 2 * WIDTH) {
        first = larger(first, load_either(x, start + i, narrow));
        second = larger(second, load_either(x, start + i + WIDTH, narrow));
    }
    for (; i < columns; i += WIDTH) {
        size_t left = columns - i;
        vec value = left < WIDTH
            ? load_some(x, start + i, left, -__builtin_inff(), narrow)
            : load_either(x, start + i, narrow);
        first = larger(first, value);
    }
    return lane_largest(larger(first, second));
}

INLINE vec exponential_of(vec x, float largest) {
    return exp_of(larger(x - largest, splat(LEAST_EXPONENT)));
}

INLINE void exponentiate_row(const Exponentials *call, size_t row, const int narrow) {
    size_t columns = call->columns, start = row * columns, i = 0;
    float largest = row_largest(call->x, start, columns, narrow);
    vec first = splat(0), second = first;
    for (; i + 2 * WIDTH <= columns; i += 2 * WIDTH) {
        vec a = exponential_of(load_either(call->x, start + i, narrow), largest);
        vec b = exponential_of(load_either(call->x, start + i + WIDTH, narrow), largest);
        store_either(call->x, start + i, a, narrow);
        store_either(call->x, start + i + WIDTH, b, narrow);
        first += a, second += b;
    }
    float rest = 0;
    for (; i < columns; i += WIDTH) {
        size_t left = columns - i < WIDTH ? columns - i : WIDTH;
        vec e = exponential_of(load_some(call->x, start + i, left, largest, narrow), largest);
        store_some(call->x, start + i, left, e, narrow);
        for (size_t lane = 0; lane < left; lane++) rest += e[lane];
    }
    call->largest[row] = largest;
    call->sum[row] = lane_sum(first + second) + rest;
}

/* What follows reads the whole row: it is in the cache when these few places are written. */
INLINE void leave_out(const Exponentials *call, size_t row, const int narrow) {
    const int64_t *list = call->lists + call->list[row] * call->width;
    float *wide = (float *)call->x + row * call->columns;
    uint16_t *half = (uint16_t *)call->x + row * call->columns;
    int64_t kept = call->kept[row], ahead = call->ahead[row];
    float wide_kept = narrow ? 0 : wide[kept];
    uint16_t half_kept = narrow ? half[kept] : 0;
    for (int64_t i = 0; i < ahead; i++) {
        if (narrow) half[list[i]] = 0xff80;
        else wide[list[i]] = -__builtin_inff();
    }
    if (narrow) half[kept] = half_kept;
    else wide[kept] = wide_kept;
}

INLINE void one_row(const Exponentials *call, size_t row, const int narrow) {
    if (call->lists) leave_out(call, row, narrow);
    exponentiate_row(call, row, narrow);
}

static void exponentiate_part(void *context, int64_t index) {
    const Exponentials *call = context;
    size_t row = call->rows * index / call->threads, end = call->rows * (index + 1) / call->threads;
    for (; row < end; row++) {
        if (call->narrow) one_row(call, row, 1);
        else one_row(call, row, 0);
    }
}

static int exponentials(const Exponentials *call) {
    run_tasks(call->threads, exponentiate_part, (void *)call);
    return 0;
}
