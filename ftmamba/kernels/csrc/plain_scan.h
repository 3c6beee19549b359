/* The selective scan alone, from u, dt, A, B and C in memory: a chunk is copied to padded buffers,
 * scanned as in the fused layer, and copied back. */
#pragma once

#include "blocks.h"

typedef struct {
    const Scan *given;
    size_t E, N, EP, NP;
    Cut cut;
    const float *decay; /* (NP, EP) */
} ScanPlan;

typedef struct {
    float *u, *dt, *v, *y;         /* (chunk, EP) */
    float *BC;                     /* (chunk, 2 NP) */
    float *state;                  /* (NP, EP) */
    float *dy, *d_v, *d_dt, *d_BC; /* the backward pass alone */
    float *carry, *d_A;            /* (NP, EP) */
} ScanWork;

static ScanPlan plan_scan(const Scan *given) {
    ScanPlan plan = {given, given->inner, given->state, padded(given->inner), 0, {0}, NULL};
    plan.NP = (plan.N + GROUP - 1) / GROUP * GROUP;
    plan.cut = cut_rows(given->length, 1, 1);
    return plan;
}

static void take_scan_work(const ScanPlan *plan, Arena *arena, ScanWork *work, int backward) {
    size_t T = plan->cut.chunk, EP = plan->EP, kept = plan->NP * EP;
    work->u = take(arena, T * EP), work->dt = take(arena, T * EP);
    work->v = take(arena, T * EP), work->y = take(arena, T * EP);
    work->BC = take(arena, T * 2 * plan->NP);
    work->state = take(arena, kept);
    if (!backward) return;
    work->dy = take(arena, T * EP), work->d_v = take(arena, T * EP);
    work->d_dt = take(arena, T * EP), work->d_BC = take(arena, T * 2 * plan->NP);
    work->carry = take(arena, kept), work->d_A = take(arena, kept);
}

static void fill_decay(ScanPlan *plan, float *decay) {
    const Scan *given = plan->given;
    zero(decay, plan->NP * plan->EP);
    for (size_t e = 0; e < plan->E; e++)
        for (size_t n = 0; n < plan->N; n++)
            decay[n * plan->EP + e] = given->A[e * plan->N + n] * LOG2_E;
    plan->decay = decay;
}

/* Copy `tokens` rows of E floats to rows of `width`, zero beyond. */
static void widen(float *to, size_t width, const float *from, size_t tokens, size_t E) {
    for (size_t t = 0; t < tokens; t++) {
        memcpy(to + t * width, from + t * E, E * sizeof(float));
        zero(to + t * width + E, width - E);
    }
}

static void narrow(float *to, const float *from, size_t width, size_t tokens, size_t E) {
    for (size_t t = 0; t < tokens; t++) memcpy(to + t * E, from + t * width, E * sizeof(float));
}

/* Read the chunk that begins at token `at` of all rows' tokens. */
static Chunk read_chunk(const ScanPlan *plan, size_t at, size_t tokens, ScanWork *work) {
    const Scan *given = plan->given;
    size_t E = plan->E, N = plan->N, EP = plan->EP, NP = plan->NP;
    widen(work->u, EP, given->u + at * E, tokens, E);
    widen(work->dt, EP, given->dt + at * E, tokens, E);
    for (size_t i = 0; i < tokens * EP; i += WIDTH)
        store(work->v + i, load(work->dt + i) * load(work->u + i));
    zero(work->BC, tokens * 2 * NP);
    for (size_t t = 0; t < tokens; t++) {
        memcpy(work->BC + t * 2 * NP, given->B + (at + t) * N, N * sizeof(float));
        memcpy(work->BC + t * 2 * NP + NP, given->C + (at + t) * N, N * sizeof(float));
    }
    return (Chunk){tokens, EP, NP, {0, EP}, plan->decay, work->dt, work->v, work->BC, work->BC + NP, 2 * NP};
}

static float *kept_state(const ScanPlan *plan, size_t row, size_t index) {
    return plan->given->states +
           (row * (plan->cut.n_chunks - 1) + index - 1) * plan->NP * plan->EP;
}

typedef struct {
    const ScanPlan *plan;
    const ScanWork *works;
} ScanTasks;

static void scan_forward_task(void *context, int64_t task) {
    const ScanTasks *tasks = context;
    const ScanPlan *plan = tasks->plan;
    const Scan *given = plan->given;
    ScanWork work = tasks->works[task];
    size_t L = given->length, E = plan->E, kept = plan->NP * plan->EP;
    size_t end = given->rows * (task + 1) / given->threads;
    for (size_t row = given->rows * task / given->threads; row < end; row++) {
        zero(work.state, kept);
        for (size_t index = 0; index < plan->cut.n_chunks; index++) {
            size_t start = index * plan->cut.chunk, at = row * L + start;
            size_t tokens = smaller_size(plan->cut.chunk, L - start);
            Chunk chunk = read_chunk(plan, at, tokens, &work);
            if (given->states && index)
                memcpy(kept_state(plan, row, index), work.state, kept * sizeof(float));
            scan_forward(&chunk, work.state, work.y);
            narrow(given->y + at * E, work.y, plan->EP, tokens, E);
        }
    }
}

static void write_chunk_gradient(const ScanPlan *plan, size_t at, size_t tokens, ScanWork *work) {
    const Scan *given = plan->given;
    size_t E = plan->E, N = plan->N, EP = plan->EP, NP = plan->NP;
    for (size_t i = 0; i < tokens * EP; i += WIDTH) {
        vec d_v = load(work->d_v + i), u = load(work->u + i);
        store(work->d_dt + i, load(work->d_dt + i) * LN_2 + d_v * u);
        store(work->d_v + i, d_v * load(work->dt + i));
    }
    narrow(given->d_u + at * E, work->d_v, EP, tokens, E);
    narrow(given->d_dt + at * E, work->d_dt, EP, tokens, E);
    narrow(given->d_B + at * N, work->d_BC, 2 * NP, tokens, N);
    narrow(given->d_C + at * N, work->d_BC + NP, 2 * NP, tokens, N);
}

static void scan_backward_task(void *context, int64_t task) {
    const ScanTasks *tasks = context;
    const ScanPlan *plan = tasks->plan;
    const Scan *given = plan->given;
    ScanWork work = tasks->works[task];
    size_t L = given->length, E = plan->E, kept = plan->NP * plan->EP;
    size_t end = given->rows * (task + 1) / given->threads;
    zero(work.d_A, kept);
    for (size_t row = given->rows * task / given->threads; row < end; row++) {
        zero(work.carry, kept);
        for (size_t index = plan->cut.n_chunks; index-- > 0;) {
            size_t start = index * plan->cut.chunk, at = row * L + start;
            size_t tokens = smaller_size(plan->cut.chunk, L - start);
            Chunk chunk = read_chunk(plan, at, tokens, &work);
            if (!index) zero(work.state, kept);
            widen(work.dy, plan->EP, given->d_y + at * E, tokens, E);
            ScanGradient gradient = {
                .before = index ? kept_state(plan, row, index) : work.state,
                .dy = work.dy, .only_last = 0,
                .carry = work.carry, .y = work.y, .dv = work.d_v, .ddt = work.d_dt,
                .dB = work.d_BC, .dC = work.d_BC + plan->NP, .d_stride = 2 * plan->NP,
                .d_decay = work.d_A};
            scan_backward(&chunk, &gradient);
            write_chunk_gradient(plan, at, tokens, &work);
        }
    }
}

static int run_scan(const Scan *given, Task task, int backward, ScanPlan *plan, ScanWork *works,
                    Arena *arena) {
    *plan = plan_scan(given);
    float *decay = take(arena, plan->NP * plan->EP);
    for (int64_t i = 0; i < given->threads; i++) take_scan_work(plan, arena, &works[i], backward);
    if (!provide(arena)) return 1;
    decay = take(arena, plan->NP * plan->EP);
    for (int64_t i = 0; i < given->threads; i++) take_scan_work(plan, arena, &works[i], backward);
    fill_decay(plan, decay);
    ScanTasks tasks = {plan, works};
    run_tasks(given->threads, task, &tasks);
    return 0;
}

static int plain_scan_forward(const Scan *given) {
    ScanPlan plan;
    ScanWork works[MOST_THREADS];
    Arena arena = {0};
    int failed = run_scan(given, scan_forward_task, 0, &plan, works, &arena);
    free(arena.from);
    return failed;
}

static int plain_scan_backward(const Scan *given) {
    ScanPlan plan;
    ScanWork works[MOST_THREADS];
    Arena arena = {0};
    int failed = run_scan(given, scan_backward_task, 1, &plan, works, &arena);
    for (int64_t i = 1; i < given->threads && !failed; i++)
        add_to(works[0].d_A, works[i].d_A, plan.NP * plan.EP);
    for (size_t e = 0; e < plan.E && !failed; e++)
        for (size_t n = 0; n < plan.N; n++)
            given->d_A[e * plan.N + n] = works[0].d_A[n * plan.EP + e];
    free(arena.from);
    return failed;
}
