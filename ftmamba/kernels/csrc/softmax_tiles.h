/* The softmax of inner products with every item, and the products of its gradient, on tiles.
 * A block of positions passes through all of them while its logits lie in the cache; apart,
 * each product and the exponentials would go through memory.
 *
 * Sizes: R rows of a block, I items, D embedding; IP, DP are padded to whole tiles.
 */
#pragma once

#include "blocks.h"
#include "softmax.h"
#include "tiles.h"

#ifndef HAS_TILES
#define SOFTMAX NULL
#else
#define SOFTMAX softmax

#define BLOCK_ROWS 64
#define SIDE 16      /* rows of a tile, and its columns of float32 */
#define DEPTH 32     /* bfloat16 numbers of a tile's row */
#define TILE_SIZE (SIDE * DEPTH)
_Static_assert(BLOCK_ROWS == 2 * DEPTH, "add_d_items takes a block's rows as two tiles");

INLINE void zero_four(void) {
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
}

/* Tiles 0 to 3 += (tiles 4 and 5, one above the other) (tiles 6 and 7, side by side). */
INLINE void multiply_four(void) {
    tile_multiply(0, 4, 6);
    tile_multiply(1, 4, 7);
    tile_multiply(2, 5, 6);
    tile_multiply(3, 5, 7);
}

INLINE void store_four(float *to, size_t stride) {
    tile_store(0, to, stride * 4);
    tile_store(1, to + SIDE, stride * 4);
    tile_store(2, to + SIDE * stride, stride * 4);
    tile_store(3, to + SIDE * stride + SIDE, stride * 4);
}

typedef struct {
    const Softmax *given;
    size_t I, D, IP, DP;
    /* The items as right factors, tile after tile, pairs of what is summed over side by side. */
    uint16_t *by_size; /* for the logits: (IP / SIDE, DP / DEPTH) tiles */
    uint16_t *by_item; /* for d_hidden: (IP / DEPTH, DP / SIDE) tiles */
} SoftmaxPlan;

typedef struct {
    uint16_t *hidden;  /* (R, DP), then (DP, R) scaled for d_items */
    uint16_t *x;       /* (R, IP): logits, then their exponentials */
    uint32_t *pairs;   /* (R / 2, IP): two rows of x side by side */
    float *scratch;    /* (DEPTH, DEPTH) */
    float *d_hidden;   /* (R, DP) */
    float *d_items;    /* (DP, IP) */
} SoftmaxWork;

static uint16_t *take_halves(Arena *arena, size_t count) {
    return (uint16_t *)take(arena, (count + 1) / 2);
}

static void take_softmax_work(const SoftmaxPlan *plan, Arena *arena, SoftmaxWork *work) {
    int gradient = plan->given->d_hidden != NULL;
    work->hidden = take_halves(arena, BLOCK_ROWS * plan->DP);
    work->x = take_halves(arena, BLOCK_ROWS * plan->IP);
    work->scratch = take(arena, DEPTH * DEPTH);
    work->pairs = (uint32_t *)take(arena, gradient * BLOCK_ROWS / 2 * plan->IP);
    work->d_hidden = take(arena, gradient * BLOCK_ROWS * plan->DP);
    work->d_items = take(arena, gradient * plan->DP * plan->IP);
}

static void pack_items(const SoftmaxPlan *plan) {
    size_t D = plan->D, tiles_a_row = plan->DP / DEPTH, tiles_a_group = plan->DP / SIDE;
    memset(plan->by_size, 0, plan->IP * plan->DP * sizeof(uint16_t));
    memset(plan->by_item, 0, plan->IP * plan->DP * sizeof(uint16_t));
    for (size_t i = 0; i < plan->I; i++) {
        const uint16_t *from = plan->given->items + i * D;
        for (size_t d = 0; d < D; d++) {
            size_t tile = i / SIDE * tiles_a_row + d / DEPTH;
            plan->by_size[tile * TILE_SIZE + d % DEPTH / 2 * DEPTH + i % SIDE * 2 + d % 2] = from[d];
            tile = i / DEPTH * tiles_a_group + d / SIDE;
            plan->by_item[tile * TILE_SIZE + i % DEPTH / 2 * DEPTH + d % SIDE * 2 + i % 2] = from[d];
        }
    }
}

/* The positions' outputs, rounded; rows and columns beyond the end are zero. */
static void take_hidden(const SoftmaxPlan *plan, size_t first, size_t rows, uint16_t *to) {
    memset(to, 0, BLOCK_ROWS * plan->DP * sizeof(uint16_t));
    for (size_t r = 0; r < rows; r++)
        for (size_t d = 0; d < plan->D; d++)
            put_number(to, r * plan->DP + d, plan->given->hidden[(first + r) * plan->D + d], 1);
}

static void make_logits(const SoftmaxPlan *plan, const SoftmaxWork *work) {
    size_t DP = plan->DP, next = DP / DEPTH * TILE_SIZE;
    for (size_t i = 0; i < plan->IP; i += DEPTH) {
        for (size_t r = 0; r < BLOCK_ROWS; r += DEPTH) {
            const uint16_t *left = work->hidden + r * DP;
            const uint16_t *right = plan->by_size + i / SIDE * next;
            zero_four();
            for (size_t d = 0; d < DP; d += DEPTH, left += DEPTH, right += TILE_SIZE) {
                tile_load(4, left, DP * 2);
                tile_load(5, left + SIDE * DP, DP * 2);
                tile_load(6, right, DEPTH * 2);
                tile_load(7, right + next, DEPTH * 2);
                multiply_four();
            }
            store_four(work->scratch, DEPTH);
            for (size_t j = 0; j < DEPTH; j++)
                for (size_t k = 0; k < DEPTH; k += WIDTH)
                    store_either(work->x, (r + j) * plan->IP + i + k,
                                 load(work->scratch + j * DEPTH + k), 1);
        }
    }
}

static void exponentiate_block(const SoftmaxPlan *plan, const SoftmaxWork *work, size_t first,
                               size_t rows) {
    const Softmax *given = plan->given;
    Exponentials block = {
        .columns = plan->I, .stride = plan->IP, .narrow = 1, .width = given->width,
        .bias = given->bias, .x = work->x, .largest = given->largest + first,
        .sum = given->sum + first, .listed = given->listed ? given->listed + first : NULL,
        .lists = given->lists, .list = given->list ? given->list + first : NULL,
        .ahead = given->ahead ? given->ahead + first : NULL,
        .kept = given->kept ? given->kept + first : NULL};
    for (size_t r = 0; r < rows; r++) {
        given->target[first + r] = number_at(work->x, r * plan->IP + given->targets[first + r], 1);
        one_row(&block, r, 1);
    }
}

/* Of a row's exponentials, to its share of their gradients. */
INLINE float scale_of(const Softmax *given, size_t row) {
    return given->share[row] / given->sum[row];
}

static void make_d_hidden(const SoftmaxPlan *plan, const SoftmaxWork *work, size_t first,
                          size_t rows) {
    const Softmax *given = plan->given;
    size_t DP = plan->DP, IP = plan->IP;
    for (size_t r = 0; r < rows; r += DEPTH) {
        for (size_t d = 0; d < DP; d += DEPTH) {
            zero_four();
            for (size_t i = 0; i < IP; i += DEPTH) {
                const uint16_t *left = work->x + r * IP + i;
                const uint16_t *right = plan->by_item + (i / DEPTH * DP + d) / SIDE * TILE_SIZE;
                tile_load(4, left, IP * 2);
                tile_load(5, left + SIDE * IP, IP * 2);
                tile_load(6, right, DEPTH * 2);
                tile_load(7, right + TILE_SIZE, DEPTH * 2);
                multiply_four();
            }
            store_four(work->d_hidden + r * DP + d, DP);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        float scale = scale_of(given, first + r);
        for (size_t d = 0; d < plan->D; d++)
            given->d_hidden[(first + r) * plan->D + d] = scale * work->d_hidden[r * DP + d];
    }
}

/* Two rows of bfloat16 numbers side by side, as the right factor of a product that sums over rows. */
static void pair_rows(const SoftmaxPlan *plan, const SoftmaxWork *work) {
    for (size_t p = 0; p < BLOCK_ROWS / 2; p++) {
        const uint16_t *even = work->x + 2 * p * plan->IP, *odd = even + plan->IP;
        uint32_t *to = work->pairs + p * plan->IP;
        for (size_t i = 0; i < plan->IP; i += WIDTH) {
            bits_vec low = __builtin_convertvector(*(const half_vec *)(even + i), bits_vec);
            bits_vec high = __builtin_convertvector(*(const half_vec *)(odd + i), bits_vec);
            store((float *)(to + i), (vec)(low | high << 16));
        }
    }
}

/* (DP, R): what d_items sums p with. */
static void scale_hidden(const SoftmaxPlan *plan, size_t first, size_t rows, uint16_t *to) {
    const Softmax *given = plan->given;
    memset(to, 0, BLOCK_ROWS * plan->DP * sizeof(uint16_t));
    for (size_t r = 0; r < rows; r++) {
        float scale = scale_of(given, first + r);
        const float *from = given->hidden + (first + r) * plan->D;
        for (size_t d = 0; d < plan->D; d++) put_number(to, d * BLOCK_ROWS + r, scale * from[d], 1);
    }
}

static void add_d_items(const SoftmaxPlan *plan, const SoftmaxWork *work) {
    size_t IP = plan->IP;
    for (size_t i = 0; i < IP; i += SIDE) {
        tile_load(6, work->pairs + i, IP * 4);
        tile_load(7, work->pairs + SIDE * IP + i, IP * 4);
        for (size_t d = 0; d < plan->DP; d += DEPTH) {
            const uint16_t *left = work->hidden + d * BLOCK_ROWS;
            float *to = work->d_items + d * IP + i;
            tile_load(0, to, IP * 4);
            tile_load(1, to + SIDE * IP, IP * 4);
            tile_load(2, left, BLOCK_ROWS * 2);
            tile_load(3, left + DEPTH, BLOCK_ROWS * 2);
            tile_load(4, left + SIDE * BLOCK_ROWS, BLOCK_ROWS * 2);
            tile_load(5, left + SIDE * BLOCK_ROWS + DEPTH, BLOCK_ROWS * 2);
            tile_multiply(0, 2, 6);
            tile_multiply(1, 4, 6);
            tile_multiply(0, 3, 7);
            tile_multiply(1, 5, 7);
            tile_store(0, to, IP * 4);
            tile_store(1, to + SIDE * IP, IP * 4);
        }
    }
}

typedef struct {
    const SoftmaxPlan *plan;
    const SoftmaxWork *works; /* one a task */
} SoftmaxTasks;

static void softmax_task(void *context, int64_t task) {
    const SoftmaxTasks *tasks = context;
    const SoftmaxPlan *plan = tasks->plan;
    const SoftmaxWork *work = tasks->works + task;
    size_t rows = plan->given->rows;
    Lanes part = part_of(rows, BLOCK_ROWS, (Team){task, plan->given->threads, NULL});
    TileShapes before;
    if (part.first == part.end) return;
    take_tiles(&before);
    for (size_t first = part.first; first < part.end; first += BLOCK_ROWS) {
        size_t now = smaller_size(BLOCK_ROWS, part.end - first);
        take_hidden(plan, first, now, work->hidden);
        make_logits(plan, work);
        exponentiate_block(plan, work, first, now);
        if (!plan->given->d_hidden) continue;
        make_d_hidden(plan, work, first, now);
        pair_rows(plan, work);
        scale_hidden(plan, first, now, work->hidden);
        add_d_items(plan, work);
    }
    give_back_tiles(&before);
}

static void take_softmax(SoftmaxPlan *plan, Arena *arena, SoftmaxWork *works) {
    plan->by_size = take_halves(arena, plan->IP * plan->DP);
    plan->by_item = take_halves(arena, plan->IP * plan->DP);
    for (int64_t i = 0; i < plan->given->threads; i++) take_softmax_work(plan, arena, &works[i]);
}

static int softmax(const Softmax *given) {
    SoftmaxPlan plan = {given, given->columns, given->size, padded_to(given->columns, DEPTH),
                        padded_to(given->size, DEPTH), NULL, NULL};
    SoftmaxWork works[MOST_THREADS];
    Arena arena = {0};
    take_softmax(&plan, &arena, works);
    if (!provide(&arena)) return 1;
    take_softmax(&plan, &arena, works);
    pack_items(&plan);
    for (int64_t i = 0; given->d_hidden && i < given->threads; i++)
        zero(works[i].d_items, plan.DP * plan.IP);
    SoftmaxTasks tasks = {&plan, works};
    run_tasks(given->threads, softmax_task, &tasks);
    for (int64_t i = 0; given->d_hidden && i < given->threads; i++)
        for (size_t d = 0; d < plan.D; d++)
            add_to(given->d_items + d * plan.I, works[i].d_items + d * plan.IP, plan.I);
    free(arena.from);
    return 0;
}
#endif
