/* The fused Mamba layer. One block of tokens passes through norm, products, convolution, scan, gate
 * and output while it lies in the cache; the backward pass computes them again from x, which costs
 * less than writing them to memory and reading them back.
 *
 * Sizes: H hidden, E inner, N state, R rank, K kernel, S = R + 2 N columns of x_proj; HP, EP, NP, SP
 * are padded. M tokens of a block, O of them with an output (all, or one a row).
 */
#pragma once

#include "blocks.h"
#include "conv.h"
#include "dropout.h"
#include "matmul.h"
#include "norm.h"

typedef struct {
    const Layer *given;
    size_t H, E, N, R, K, S, HP, EP, NP, SP, RP;
    size_t tasks, members; /* many rows: a task a thread; few: one task for a team of threads */
    Cut cut;
    int keeps_x; /* x is used where it lies: no norm, not reversed, rows of whole vectors */
    const float *x_proj, *conv_weight, *conv_bias, *dt_weight, *dt_bias, *decay, *D;
    Right in_x, in_z, x_columns, out;           /* for the forward pass */
    Right out_rows, x_rows, in_x_rows, in_z_rows, dt_rows; /* for the backward pass */
} Plan;

static size_t bytes_per_token(const Plan *plan, int backward) {
    size_t forward = plan->HP + 3 * plan->EP + plan->SP;
    size_t floats = backward ? 3 * plan->HP + 9 * plan->EP + 2 * plan->SP : forward;
    return floats * sizeof(float);
}

static Plan sizes_of(const Layer *given, int backward) {
    Plan plan = {.given = given};
    plan.H = given->hidden, plan.E = given->inner, plan.N = given->state;
    plan.R = given->rank, plan.K = given->kernel;
    plan.HP = padded(plan.H), plan.EP = padded(plan.E), plan.RP = padded(plan.R);
    plan.NP = (plan.N + GROUP - 1) / GROUP * GROUP;
    plan.S = plan.R + 2 * plan.NP;
    plan.SP = padded(plan.S);
    plan.tasks = given->threads <= given->rows ? given->threads : 1;
    plan.members = given->threads <= given->rows ? 1 : given->threads;
    plan.cut = cut_rows(given->length, bytes_per_token(&plan, backward), plan.members);
    plan.keeps_x = plan.H == plan.HP && !given->reverse && !given->norm_weight;
    return plan;
}

/* ---- weights, transposed, padded and packed once a call ---- */

static Right pack_into(Arena *arena, const float *from, size_t depth, size_t columns, size_t row,
                       size_t column) {
    float *to = take(arena, packed_size(depth, columns));
    if (!arena->from) return (Right){0};
    return pack(to, from, depth, columns, row, column);
}

/* (columns, rows) of `from` (rows, columns) in a memory of `width` a row, zero beyond. */
static void transpose(float *to, size_t width, const float *from, size_t rows, size_t columns) {
    zero(to, columns * width);
    for (size_t c = 0; c < columns; c++)
        for (size_t r = 0; r < rows; r++) to[c * width + r] = from[r * columns + c];
}

static void fill_small_weights(Plan *plan, float *x_proj, float *conv_weight, float *conv_bias,
                               float *dt_weight, float *dt_bias, float *decay, float *D) {
    const Layer *given = plan->given;
    size_t E = plan->E, EP = plan->EP, N = plan->N, R = plan->R;
    zero(x_proj, plan->S * EP);
    for (size_t s = 0; s < R + 2 * N; s++) {
        size_t to = s < R + N ? s : s + plan->NP - N;
        memcpy(x_proj + to * EP, given->x_proj + s * E, E * sizeof(float));
    }
    transpose(conv_weight, EP, given->conv_weight, E, plan->K);
    transpose(dt_weight, EP, given->dt_weight, E, R);
    transpose(decay, EP, given->A_log, E, N);
    for (size_t n = 0; n < N; n++)
        for (size_t e = 0; e < E; e += WIDTH)
            store(decay + n * EP + e, -LOG2_E * exp_of(load(decay + n * EP + e)));
    zero(decay + N * EP, (plan->NP - N) * EP);
    zero(conv_bias, EP), zero(dt_bias, EP), zero(D, EP);
    if (given->conv_bias) memcpy(conv_bias, given->conv_bias, E * sizeof(float));
    memcpy(dt_bias, given->dt_bias, E * sizeof(float));
    memcpy(D, given->D, E * sizeof(float));
}

static void prepare_weights(Plan *plan, Arena *arena, int backward) {
    const Layer *given = plan->given;
    size_t H = plan->H, E = plan->E, EP = plan->EP;
    float *x_proj = take(arena, plan->S * EP), *conv_weight = take(arena, plan->K * EP);
    float *conv_bias = take(arena, EP), *dt_weight = take(arena, plan->R * EP);
    float *dt_bias = take(arena, EP), *decay = take(arena, plan->NP * EP), *D = take(arena, EP);
    if (arena->from)
        fill_small_weights(plan, x_proj, conv_weight, conv_bias, dt_weight, dt_bias, decay, D);
    plan->x_proj = x_proj, plan->conv_weight = conv_weight, plan->conv_bias = conv_bias;
    plan->dt_weight = dt_weight, plan->dt_bias = dt_bias, plan->decay = decay, plan->D = D;
    plan->in_x = pack_into(arena, given->in_proj, H, E, 1, H);
    plan->in_z = pack_into(arena, given->in_proj + E * H, H, E, 1, H);
    plan->x_columns = pack_into(arena, x_proj, E, plan->S, 1, EP);
    if (!backward) {
        plan->out = pack_into(arena, given->out_proj, E, H, 1, E);
        return;
    }
    plan->out_rows = pack_into(arena, given->out_proj, H, E, E, 1);
    plan->x_rows = pack_into(arena, x_proj, plan->S, E, EP, 1);
    plan->in_x_rows = pack_into(arena, given->in_proj, E, H, H, 1);
    plan->in_z_rows = pack_into(arena, given->in_proj + E * H, E, H, H, 1);
    plan->dt_rows = pack_into(arena, given->dt_weight, E, plan->R, plan->R, 1);
}

/* ---- tokens of a block ---- */

INLINE size_t token_index(const Layer *given, size_t row, size_t t) {
    size_t L = given->length;
    return row * L + (given->reverse ? L - 1 - t : t);
}

INLINE Norm norm_of(const Layer *given) {
    return (Norm){given->hidden, (float)given->eps, given->norm_weight, given->norm_bias};
}

/* The inputs of in_proj, (M, HP): x itself, or copies of it, normalised if asked. */
static const float *tokens_of(const Plan *plan, Block block, float *buffer, Team team) {
    const Layer *given = plan->given;
    size_t H = plan->H, HP = plan->HP;
    if (plan->keeps_x) return given->x + token_index(given, block.first, block.start) * H;
    Lanes part = part_of(block.rows * block.tokens, TILE_ROWS, team);
    for (size_t i = part.first; i < part.end; i++) {
        size_t row = block.first + i / block.tokens, t = block.start + i % block.tokens;
        const float *from = given->x + token_index(given, row, t) * H;
        float *to = buffer + i * HP;
        if (given->norm_weight) norm_forward(norm_of(given), from, to);
        else memcpy(to, from, H * sizeof(float));
        zero(to + H, HP - H);
    }
    return buffer;
}

/* Which tokens of the block have an output: `count` of them, the first at token `first`, then every
 * `step`-th. */
typedef struct {
    size_t count, first, step;
} Outputs;

static Outputs outputs_of(const Layer *given, Block block) {
    if (!given->last) return (Outputs){block.rows * block.tokens, 0, 1};
    int final = block.start + block.tokens == (size_t)given->length;
    return (Outputs){final ? block.rows : 0, block.tokens - 1, block.tokens};
}

/* Position of the block's o-th output in `out`, and of the token it belongs to in `x`. */
INLINE size_t output_index(const Layer *given, Block block, size_t o) {
    if (given->last) return block.first + o;
    return token_index(given, block.first + o / block.tokens, block.start + o % block.tokens);
}

INLINE size_t output_token(const Layer *given, Block block, size_t o) {
    if (given->last) return token_index(given, block.first + o, given->length - 1);
    return output_index(given, block, o);
}

/* ---- what both passes compute ---- */

typedef struct {
    const float *inputs;       /* (M, HP) */
    float *copies;             /* memory for them */
    float *x, *z, *u, *xd;     /* (M, EP), (O, EP), (M, EP), (M, SP) */
    float *before;             /* (K - 1, EP): x ahead of the segment */
    float *dt, *v;             /* (chunk, EP) forward, (M, EP) backward */
    float *y;                  /* (O, EP) */
    float *state;              /* (NP, EP) */
    float *out;                /* (O, HP) where out's rows are no whole vectors */
} Work;

static void take_work(const Plan *plan, Arena *arena, Work *work, int backward) {
    size_t M = plan->cut.rows * plan->cut.segment, EP = plan->EP;
    work->copies = plan->keeps_x ? NULL : take(arena, M * plan->HP);
    work->x = take(arena, M * EP), work->z = take(arena, M * EP), work->u = take(arena, M * EP);
    work->xd = take(arena, M * plan->SP);
    work->before = take(arena, plan->K * EP);
    size_t steps = backward ? M : plan->cut.chunk;
    work->dt = take(arena, steps * EP), work->v = take(arena, steps * EP);
    work->y = take(arena, M * EP);
    work->state = take(arena, plan->NP * EP);
    work->out = take(arena, M * plan->HP);
}

INLINE Lanes lanes_of(const Plan *plan, Team team) { return part_of(plan->EP, WIDTH, team); }

/* The member's rows of `multiply`. */
static void multiply_part(Team team, size_t rows, size_t depth, Left a, Right b, float *c,
                          size_t c_stride, int add) {
    Lanes part = part_of(rows, TILE_ROWS, team);
    a.values += (ptrdiff_t)part.first * a.row;
    multiply(part.end - part.first, depth, a, b, c + part.first * c_stride, c_stride, add);
}

INLINE Conv conv_of(const Plan *plan, size_t tokens, Team team) {
    return (Conv){tokens, plan->EP, plan->K, lanes_of(plan, team), plan->conv_weight,
                  plan->conv_bias};
}

/* The member's channels of the last K - 1 rows of `from` (tokens, EP), or of the first. */
static void keep_rows(const Plan *plan, float *to, const float *from, size_t tokens, int last,
                      Team team) {
    size_t EP = plan->EP, kept = plan->K - 1;
    Lanes lanes = lanes_of(plan, team);
    if (tokens < kept) return;
    for (size_t k = 0; k < kept; k++)
        memcpy(to + k * EP + lanes.first, from + (last ? tokens - kept + k : k) * EP + lanes.first,
               (lanes.end - lanes.first) * sizeof(float));
}

/* ---- tokens that go on from earlier ones ---- */

/* The member's channels of a row's newest inputs of the convolution: (E, K - 1) -> (K - 1, EP). */
static void take_inputs(const Plan *plan, size_t row, float *to, Lanes lanes) {
    size_t E = plan->E, kept = plan->K - 1;
    const float *from = plan->given->conv_before + row * E * kept;
    for (size_t k = 0; k < kept; k++)
        for (size_t e = lanes.first; e < lanes.end; e++)
            to[k * plan->EP + e] = e < E ? from[e * kept + k] : 0.0f;
}

/* The newest K - 1 inputs after `tokens` more, x (tokens, EP): (E, K - 1). */
static void leave_inputs(const Plan *plan, size_t row, const float *before, const float *x,
                         size_t tokens, Lanes lanes) {
    size_t E = plan->E, kept = plan->K - 1;
    float *to = plan->given->conv_after + row * E * kept;
    for (size_t k = 0; k < kept; k++) {
        const float *from = k + tokens >= kept ? x + (k + tokens - kept) * plan->EP
                                               : before + (k + tokens) * plan->EP;
        for (size_t e = lanes.first; e < lanes.end && e < E; e++) to[e * kept + k] = from[e];
    }
}

/* A row's state: (E, N) -> (NP, EP), and back. */
static void take_state(const Plan *plan, size_t row, float *state, Lanes lanes) {
    size_t E = plan->E, N = plan->N;
    const float *from = plan->given->state_before + row * E * N;
    for (size_t n = 0; n < plan->NP; n++)
        for (size_t e = lanes.first; e < lanes.end; e++)
            state[n * plan->EP + e] = n < N && e < E ? from[e * N + n] : 0.0f;
}

static void leave_state(const Plan *plan, size_t row, const float *state, Lanes lanes) {
    size_t E = plan->E, N = plan->N;
    float *to = plan->given->state_after + row * E * N;
    for (size_t e = lanes.first; e < lanes.end && e < E; e++)
        for (size_t n = 0; n < N; n++) to[e * N + n] = state[n * plan->EP + e];
}

/* inputs -> x and z, each member its tokens. */
static void project_in(const Plan *plan, Block block, Outputs outputs, Work *work, Team team) {
    size_t HP = plan->HP, EP = plan->EP;
    multiply_part(team, block.rows * block.tokens, plan->H, (Left){work->inputs, HP, 1}, plan->in_x,
                  work->x, EP, 0);
    Left with_output = {work->inputs + outputs.first * HP, outputs.step * HP, 1};
    multiply_part(team, outputs.count, plan->H, with_output, plan->in_z, work->z, EP, 0);
}

/* x -> u -> xd. `before` must hold x ahead of a segment that does not begin its row. */
static void convolve_and_project(const Plan *plan, Block block, Work *work, Team team) {
    const Layer *given = plan->given;
    size_t EP = plan->EP;
    int goes_on = block.start || given->conv_before;
    int ends = block.start + block.tokens == (size_t)given->length;
    Lanes lanes = lanes_of(plan, team);
    for (size_t r = 0; r < block.rows; r++) {
        const float *x = work->x + r * block.tokens * EP;
        if (!block.start && given->conv_before)
            take_inputs(plan, block.first + r, work->before, lanes);
        conv_forward(conv_of(plan, block.tokens, team), x, goes_on ? work->before : NULL,
                     work->u + r * block.tokens * EP);
        if (ends && given->conv_after)
            leave_inputs(plan, block.first + r, work->before, x, block.tokens, lanes);
    }
    meet(team);
    multiply_part(team, block.rows * block.tokens, plan->E, (Left){work->u, EP, 1}, plan->x_columns,
                  work->xd, plan->SP, 0);
    meet(team);
}

/* dt = softplus(dt_weight xd + dt_bias), v = dt u; the slope of softplus where asked. */
static void time_steps(const Plan *plan, Lanes lanes, size_t tokens, const float *xd,
                       const float *u, float *dt, float *v, float *slope) {
    size_t EP = plan->EP;
    for (size_t t = 0; t < tokens; t++, xd += plan->SP, u += EP, dt += EP, v += EP) {
        for (size_t e = lanes.first; e < lanes.end; e += WIDTH) {
            vec raw = load(plan->dt_bias + e);
            for (size_t r = 0; r < plan->R; r++)
                raw += load(plan->dt_weight + r * EP + e) * xd[r];
            vec step, by_raw;
            if (slope) {
                step = softplus_and_slope(raw, &by_raw);
                store(slope + t * EP + e, by_raw);
            } else step = softplus(raw);
            store(dt + e, step);
            store(v + e, step * load(u + e));
        }
    }
}

INLINE Chunk chunk_of(const Plan *plan, Lanes lanes, size_t tokens, const float *xd, const float *dt,
                      const float *v) {
    return (Chunk){tokens, plan->EP, plan->NP, lanes, plan->decay, dt, v, xd + plan->R,
                   xd + plan->R + plan->NP, plan->SP};
}

/* ---- forward ---- */

/* y = (y + D u) silu(z) over `count` tokens. */
static void gate(const Plan *plan, Lanes lanes, size_t count, float *y, const float *u,
                 const float *z) {
    size_t EP = plan->EP;
    for (size_t o = 0; o < count; o++)
        for (size_t e = lanes.first; e < lanes.end; e += WIDTH) {
            size_t i = o * EP + e;
            vec skipped = load(y + i) + load(plan->D + e) * load(u + i);
            store(y + i, skipped * silu(load(z + i)));
        }
}

/* The member's channels of every state. */
static void zero_states(const Plan *plan, Lanes lanes, float *states) {
    for (size_t n = 0; n < plan->NP; n++)
        zero(states + n * plan->EP + lanes.first, lanes.end - lanes.first);
}

static void copy_states(const Plan *plan, Lanes lanes, float *to, const float *from) {
    for (size_t n = 0; n < plan->NP; n++)
        memcpy(to + n * plan->EP + lanes.first, from + n * plan->EP + lanes.first,
               (lanes.end - lanes.first) * sizeof(float));
}

/* Where the state ahead of a row's index-th chunk is kept. */
INLINE float *kept_states(const Plan *plan, size_t row, size_t index) {
    return plan->given->states + (row * (plan->cut.n_chunks - 1) + index - 1) * plan->NP * plan->EP;
}

static void scan_row(const Plan *plan, Block block, size_t r, const Work *work, Team team) {
    const Layer *given = plan->given;
    size_t EP = plan->EP, row = block.first + r;
    Lanes lanes = lanes_of(plan, team);
    if (block.start == 0 && given->state_before) take_state(plan, row, work->state, lanes);
    else if (block.start == 0) zero_states(plan, lanes, work->state);
    for (size_t t = 0; t < block.tokens; t += plan->cut.chunk) {
        size_t tokens = smaller_size(plan->cut.chunk, block.tokens - t);
        size_t at = r * block.tokens + t, index = (block.start + t) / plan->cut.chunk;
        if (given->states && index)
            copy_states(plan, lanes, kept_states(plan, row, index), work->state);
        const float *xd = work->xd + at * plan->SP, *u = work->u + at * EP;
        time_steps(plan, lanes, tokens, xd, u, work->dt, work->v, NULL);
        Chunk chunk = chunk_of(plan, lanes, tokens, xd, work->dt, work->v);
        scan_forward(&chunk, work->state, given->last ? NULL : work->y + at * EP);
        if (!given->last) gate(plan, lanes, tokens, work->y + at * EP, u, work->z + at * EP);
    }
    if (given->last && block.start + block.tokens == (size_t)given->length) {
        size_t at = (r + 1) * block.tokens - 1;
        float *y = work->y + r * EP;
        const float *C = work->xd + at * plan->SP + plan->R + plan->NP;
        scan_output(EP, lanes, plan->NP, work->state, C, y);
        gate(plan, lanes, 1, y, work->u + at * EP, work->z + r * EP);
    }
    if (given->state_after && block.start + block.tokens == (size_t)given->length)
        leave_state(plan, row, work->state, lanes);
}

/* to (H) = dropout(from) [+ to]. Every output has a place of its own among what is dropped, so that
 * the backward pass drops the same, however it cuts the tokens into blocks. */
static void drop_output(const Plan *plan, size_t index, const float *from, float *to, int add) {
    Drops drops = drops_of(plan->given->drop_seed, plan->given->drop_rate, index);
    drop_span(drops, (Span){0, plan->H}, from, to, to, 0, 0, add);
}

/* As `leave`, with dropout ahead of the sum. */
static void leave_dropped(const Plan *plan, Block block, Outputs outputs, Work *work, Team team) {
    const Layer *given = plan->given;
    size_t H = plan->H, HP = plan->HP;
    multiply_part(team, outputs.count, plan->E, (Left){work->y, plan->EP, 1}, plan->out, work->out,
                  HP, 0);
    Lanes part = part_of(outputs.count, TILE_ROWS, team);
    for (size_t o = part.first; o < part.end; o++) {
        size_t index = output_index(given, block, o);
        float *to = given->out + index * H;
        if (given->residual)
            memcpy(to, given->x + output_token(given, block, o) * H, H * sizeof(float));
        drop_output(plan, index, work->out + o * HP, to, given->residual != 0);
    }
}

static void leave(const Plan *plan, Block block, Outputs outputs, Work *work, Team team) {
    const Layer *given = plan->given;
    size_t H = plan->H, HP = plan->HP;
    int direct = H == HP && !given->reverse;
    float *to = direct && outputs.count ? given->out + output_index(given, block, 0) * H : work->out;
    Lanes part = part_of(outputs.count, TILE_ROWS, team);
    for (size_t o = part.first; given->residual && o < part.end; o++) {
        memcpy(to + o * HP, given->x + output_token(given, block, o) * H, H * sizeof(float));
        zero(to + o * HP + H, HP - H);
    }
    multiply_part(team, outputs.count, plan->E, (Left){work->y, plan->EP, 1}, plan->out, to, HP,
                  given->residual != 0);
    for (size_t o = part.first; !direct && o < part.end; o++)
        memcpy(given->out + output_index(given, block, o) * H, to + o * HP, H * sizeof(float));
}

static void forward_block(const Plan *plan, Block block, Work *work, Team team) {
    Outputs outputs = outputs_of(plan->given, block);
    work->inputs = tokens_of(plan, block, work->copies, team);
    meet(team);
    project_in(plan, block, outputs, work, team);
    meet(team);
    convolve_and_project(plan, block, work, team);
    keep_rows(plan, work->before, work->x, block.tokens, 1, team);
    for (size_t r = 0; r < block.rows; r++) scan_row(plan, block, r, work, team);
    meet(team);
    if (plan->given->drop_rate > 0) leave_dropped(plan, block, outputs, work, team);
    else leave(plan, block, outputs, work, team);
}

typedef struct {
    size_t first, end;
} Share;

static Share share_of(const Plan *plan, int64_t task) {
    size_t rows = plan->given->rows;
    return (Share){rows * task / plan->tasks, rows * (task + 1) / plan->tasks};
}

typedef struct {
    const Plan *plan;
    const Work *works; /* one a task */
} ForwardTasks;

static void forward_rows(const Plan *plan, Share share, Work work, Team team) {
    size_t L = plan->given->length;
    for (size_t row = share.first; row < share.end; row += plan->cut.rows) {
        size_t rows = smaller_size(plan->cut.rows, share.end - row);
        for (size_t start = 0; start < L; start += plan->cut.segment) {
            Block block = {row, rows, start, smaller_size(plan->cut.segment, L - start)};
            forward_block(plan, block, &work, team);
        }
    }
}

static void forward_task(void *context, int64_t task) {
    const ForwardTasks *tasks = context;
    Team alone = {0, 1, NULL};
    forward_rows(tasks->plan, share_of(tasks->plan, task), tasks->works[task], alone);
}

static void forward_together(void *context, Team team) {
    const ForwardTasks *tasks = context;
    forward_rows(tasks->plan, share_of(tasks->plan, 0), tasks->works[0], team);
}

static int layer_forward(const Layer *given) {
    Plan plan = sizes_of(given, 0);
    Work works[MOST_THREADS];
    Arena arena = {0};
    prepare_weights(&plan, &arena, 0);
    for (size_t i = 0; i < plan.tasks; i++) take_work(&plan, &arena, &works[i], 0);
    if (!provide(&arena)) return 1;
    prepare_weights(&plan, &arena, 0);
    for (size_t i = 0; i < plan.tasks; i++) take_work(&plan, &arena, &works[i], 0);
    ForwardTasks tasks = {&plan, works};
    if (plan.members > 1) run_team(plan.members, forward_together, &tasks);
    else run_tasks(plan.tasks, forward_task, &tasks);
    free(arena.from);
    return 0;
}
