/* The gradient of the fused layer. Blocks and segments are visited as in the forward pass, the
 * segments of a long row from its end; the weights' gradients are added up a task or a member at a
 * time and then in order, so that they do not depend on timing. */
#pragma once

#include "layer.h"

/* Sums over tokens, padded; the vectors. One set a task or a member of the team. */
typedef struct {
    float *norm_weight, *norm_bias; /* (HP) */
    float *conv_weight, *conv_bias; /* (K, EP), (EP) */
    float *dt_bias, *D;             /* (EP) */
    size_t count;                   /* floats of all, end to end from norm_weight */
} VectorSums;

/* The matrices; one set a task, of which a team's members own different rows. */
typedef struct {
    float *in_x, *in_z; /* (E, HP) */
    float *x_proj;      /* (S, EP) */
    float *dt_weight;   /* (E, RP) */
    float *A;           /* (NP, EP) */
    float *out;         /* (H, EP) */
    size_t count;       /* floats of all, end to end from in_x */
} MatrixSums;

static void take_vector_sums(const Plan *plan, Arena *arena, VectorSums *sums) {
    size_t EP = plan->EP, HP = plan->HP, begin = arena->used;
    sums->norm_weight = take(arena, HP), sums->norm_bias = take(arena, HP);
    sums->conv_weight = take(arena, plan->K * EP), sums->conv_bias = take(arena, EP);
    sums->dt_bias = take(arena, EP), sums->D = take(arena, EP);
    sums->count = (arena->used - begin) / sizeof(float);
}

static void take_matrix_sums(const Plan *plan, Arena *arena, MatrixSums *sums) {
    size_t EP = plan->EP, HP = plan->HP, begin = arena->used;
    sums->in_x = take(arena, plan->E * HP), sums->in_z = take(arena, plan->E * HP);
    sums->x_proj = take(arena, plan->S * EP);
    sums->dt_weight = take(arena, plan->E * plan->RP);
    sums->A = take(arena, plan->NP * EP);
    sums->out = take(arena, plan->H * EP);
    sums->count = (arena->used - begin) / sizeof(float);
}

/* What a task's members share. */
typedef struct {
    Work forward;
    const float *d_out; /* (O, HP): the mixer's, where it lies or in the copies */
    float *d_copies;
    float *slope, *d_gated, *d_y, *d_u, *d_v, *d_dt; /* (M, EP) */
    float *d_rank;                                   /* (M, RP) */
    float *d_inputs;                                 /* (M, HP) */
    float *after;                                    /* (K - 1, EP): d conv of the next segment */
    float *carry;                                    /* (NP, EP) */
    MatrixSums sums;
} Back;

/* What each member has for itself. */
typedef struct {
    float *d_xd; /* (M, SP): its channels' share of the gradient of B and C; the first member's
                    becomes the whole of d_xd */
    VectorSums sums, block_sums;
} Own;

static void take_back(const Plan *plan, Arena *arena, Back *back) {
    size_t M = plan->cut.rows * plan->cut.segment, EP = plan->EP;
    take_work(plan, arena, &back->forward, 1);
    back->d_copies = take(arena, M * plan->HP);
    back->slope = take(arena, M * EP), back->d_gated = take(arena, M * EP);
    back->d_y = take(arena, M * EP), back->d_u = take(arena, M * EP);
    back->d_v = take(arena, M * EP), back->d_dt = take(arena, M * EP);
    back->d_rank = take(arena, M * plan->RP), back->d_inputs = take(arena, M * plan->HP);
    back->after = take(arena, plan->K * EP), back->carry = take(arena, plan->NP * EP);
    take_matrix_sums(plan, arena, &back->sums);
}

static void take_own(const Plan *plan, Arena *arena, Own *own) {
    own->d_xd = take(arena, plan->cut.rows * plan->cut.segment * plan->SP);
    take_vector_sums(plan, arena, &own->sums);
    take_vector_sums(plan, arena, &own->block_sums);
}

/* One member's view of the work: `owns` are those of all members of its team. */
typedef struct {
    const Plan *plan;
    Team team;
    Lanes lanes;
    Own *owns, *own;
} Member;

/* x of the K - 1 tokens ahead of a segment, computed again. */
static void look_back(const Plan *plan, Block block, Work *work) {
    size_t before = plan->K - 1;
    if (!block.start || !before) return;
    Block ahead = {block.first, 1, block.start - before, before};
    const float *inputs = tokens_of(plan, ahead, work->copies, (Team){0, 1, NULL});
    multiply(before, plan->H, (Left){inputs, plan->HP, 1}, plan->in_x, work->before, plan->EP, 0);
}

static void gather_d_out(const Member *member, Block block, Outputs outputs, Back *back) {
    const Plan *plan = member->plan;
    const Layer *given = plan->given;
    size_t H = plan->H, HP = plan->HP;
    int drops = given->drop_rate > 0;
    if (H == HP && !given->reverse && !drops) {
        back->d_out = given->d_out + (outputs.count ? output_index(given, block, 0) * H : 0);
        return;
    }
    Lanes part = part_of(outputs.count, TILE_ROWS, member->team);
    for (size_t o = part.first; o < part.end; o++) {
        size_t index = output_index(given, block, o);
        const float *from = given->d_out + index * H;
        if (drops) drop_output(plan, index, from, back->d_copies + o * HP, 0);
        else memcpy(back->d_copies + o * HP, from, H * sizeof(float));
        zero(back->d_copies + o * HP + H, HP - H);
    }
    back->d_out = back->d_copies;
}

/* d_gated = d_out out_proj, d_y = d_gated silu(z), each member its outputs. */
static void enter_backward(const Member *member, Outputs outputs, Back *back) {
    const Plan *plan = member->plan;
    size_t EP = plan->EP;
    multiply_part(member->team, outputs.count, plan->H, (Left){back->d_out, plan->HP, 1},
                  plan->out_rows, back->d_gated, EP, 0);
    Lanes part = part_of(outputs.count, TILE_ROWS, member->team);
    for (size_t i = part.first * EP; i < part.end * EP; i += WIDTH)
        store(back->d_y + i, load(back->d_gated + i) * silu(load(back->forward.z + i)));
}

static void scan_row_backward(const Member *member, Block block, size_t r, Back *back) {
    const Plan *plan = member->plan;
    const Layer *given = plan->given;
    const Work *work = &back->forward;
    size_t EP = plan->EP, row = block.first + r;
    int final = block.start + block.tokens == (size_t)given->length;
    if (final) zero_states(plan, member->lanes, back->carry);
    for (size_t t = (block.tokens - 1) / plan->cut.chunk * plan->cut.chunk;;
         t -= plan->cut.chunk) {
        size_t tokens = smaller_size(plan->cut.chunk, block.tokens - t);
        size_t at = r * block.tokens + t, index = (block.start + t) / plan->cut.chunk;
        const float *before = index ? kept_states(plan, row, index) : work->state;
        if (!index) zero_states(plan, member->lanes, work->state);
        Chunk chunk = chunk_of(plan, member->lanes, tokens, work->xd + at * plan->SP,
                               work->dt + at * EP, work->v + at * EP);
        float *d_xd = member->own->d_xd + at * plan->SP;
        ScanGradient gradient = {
            .before = before, .only_last = given->last != 0, .carry = back->carry,
            .dv = back->d_v + at * EP, .ddt = back->d_dt + at * EP, .dB = d_xd + plan->R,
            .dC = d_xd + plan->R + plan->NP, .d_stride = plan->SP, .d_decay = back->sums.A};
        if (!given->last) gradient.dy = back->d_y + at * EP, gradient.y = work->y + at * EP;
        else if (final && t + tokens == block.tokens)
            gradient.dy = back->d_y + r * EP, gradient.y = work->y + r * EP;
        scan_backward(&chunk, &gradient);
        if (!t) break;
    }
}

/* y -> the gated output, d_gated -> d_z, and the skip's share of d_u and d_D. */
static void gate_backward(const Member *member, Outputs outputs, Back *back) {
    const Plan *plan = member->plan;
    size_t EP = plan->EP;
    const Work *work = &back->forward;
    float *d_D = member->own->block_sums.D;
    for (size_t o = 0; o < outputs.count; o++) {
        size_t token = outputs.first + o * outputs.step;
        const float *at_u = work->u + token * EP, *at_z = work->z + o * EP;
        const float *at_dy = back->d_y + o * EP;
        float *at_y = work->y + o * EP, *at_d = back->d_gated + o * EP;
        float *at_du = back->d_u + token * EP;
        for (size_t e = member->lanes.first; e < member->lanes.end; e += WIDTH) {
            vec u = load(at_u + e), z = load(at_z + e), s = sigmoid(z), D = load(plan->D + e);
            vec y = load(at_y + e) + D * u, d_y = load(at_dy + e);
            store(at_du + e, d_y * D);
            store(d_D + e, load(d_D + e) + d_y * u);
            store(at_y + e, y * z * s);
            store(at_d + e, load(at_d + e) * y * s * (1.0f + z * (1.0f - s)));
        }
    }
}

/* d_u += d_v dt; d_dt becomes the gradient ahead of softplus. */
static void time_steps_backward(const Member *member, size_t M, Back *back) {
    size_t EP = member->plan->EP;
    const Work *work = &back->forward;
    float *d_bias = member->own->block_sums.dt_bias;
    for (size_t t = 0; t < M; t++) {
        for (size_t e = member->lanes.first; e < member->lanes.end; e += WIDTH) {
            size_t i = t * EP + e;
            vec d_v = load(back->d_v + i);
            store(back->d_u + i, load(back->d_u + i) + d_v * load(work->dt + i));
            vec d_dt = load(back->d_dt + i) * LN_2 + d_v * load(work->u + i);
            vec raw = d_dt * load(back->slope + i);
            store(back->d_dt + i, raw);
            store(d_bias + e, load(d_bias + e) + raw);
        }
    }
}

/* The member's channels from z, y and the scan's inputs to d_z, d_u and d_dt. */
static void scan_and_gate_backward(const Member *member, Block block, Outputs outputs, Back *back) {
    const Plan *plan = member->plan;
    const Work *work = &back->forward;
    size_t M = block.rows * block.tokens, EP = plan->EP;
    Lanes lanes = member->lanes;
    time_steps(plan, lanes, M, work->xd, work->u, work->dt, work->v, back->slope);
    for (size_t r = 0; r < block.rows; r++) scan_row_backward(member, block, r, back);
    for (size_t t = 0; outputs.count < M && t < M; t++)
        zero(back->d_u + t * EP + lanes.first, lanes.end - lanes.first);
    gate_backward(member, outputs, back);
    time_steps_backward(member, M, back);
}

/* The sum over the members of d_xd's B and C, and dt's columns from d_dt. */
static void gather_d_xd(const Member *member, size_t M, Back *back) {
    const Plan *plan = member->plan;
    size_t SP = plan->SP, R = plan->R;
    multiply_part(member->team, M, plan->E, (Left){back->d_dt, plan->EP, 1}, plan->dt_rows,
                  back->d_rank, plan->RP, 0);
    Lanes part = part_of(M, TILE_ROWS, member->team);
    for (size_t t = part.first; t < part.end; t++) {
        float *to = member->owns[0].d_xd + t * SP;
        memcpy(to, back->d_rank + t * plan->RP, R * sizeof(float));
        for (int64_t i = 1; i < member->team.count; i++)
            add_to(to + R, member->owns[i].d_xd + t * SP + R, plan->S - R);
    }
}

static void convolution_backward(const Member *member, Block block, Back *back) {
    const Plan *plan = member->plan;
    const Work *work = &back->forward;
    int final = block.start + block.tokens == (size_t)plan->given->length;
    for (size_t r = 0; r < block.rows; r++) {
        size_t at = r * block.tokens * plan->EP;
        conv_backward(conv_of(plan, block.tokens, member->team), work->x + at,
                      block.start ? work->before : NULL, back->d_u + at,
                      final ? NULL : back->after, back->d_v + at,
                      member->own->block_sums.conv_weight, member->own->block_sums.conv_bias);
    }
    keep_rows(plan, back->after, back->d_u, block.tokens, 0, member->team);
}

/* d_inputs -> d_x through the norm, each member its tokens. */
static void norm_to_d_x(const Member *member, Block block, Back *back) {
    const Plan *plan = member->plan;
    const Layer *given = plan->given;
    size_t H = plan->H;
    VectorSums *sums = &member->own->block_sums;
    Lanes part = part_of(block.rows * block.tokens, TILE_ROWS, member->team);
    for (size_t i = part.first; i < part.end; i++) {
        size_t row = block.first + i / block.tokens, t = block.start + i % block.tokens;
        size_t at = token_index(given, row, t) * H;
        const float *d = back->d_inputs + i * plan->HP;
        if (given->norm_weight)
            norm_backward(norm_of(given), given->x + at, d, given->d_x + at, sums->norm_weight,
                          sums->norm_bias);
        else memcpy(given->d_x + at, d, H * sizeof(float));
    }
}

static void residual_to_d_x(const Member *member, Block block, Outputs outputs) {
    const Plan *plan = member->plan;
    const Layer *given = plan->given;
    if (!given->residual) return;
    Lanes part = part_of(outputs.count, TILE_ROWS, member->team);
    for (size_t o = part.first; o < part.end; o++)
        add_to(given->d_x + output_token(given, block, o) * plan->H,
               given->d_out + output_index(given, block, o) * plan->H, plan->H);
}

static void forward_again(const Member *member, Block block, Outputs outputs, Back *back) {
    const Plan *plan = member->plan;
    Work *work = &back->forward;
    if (member->team.index == 0) look_back(plan, block, work);
    meet(member->team);
    work->inputs = tokens_of(plan, block, work->copies, member->team);
    gather_d_out(member, block, outputs, back);
    meet(member->team);
    project_in(plan, block, outputs, work, member->team);
    enter_backward(member, outputs, back);
    meet(member->team);
    convolve_and_project(plan, block, work, member->team);
}

static void backward_block(const Member *member, Block block, Back *back) {
    const Plan *plan = member->plan;
    Team team = member->team;
    size_t M = block.rows * block.tokens, E = plan->E, EP = plan->EP, HP = plan->HP, SP = plan->SP;
    Work *work = &back->forward;
    Outputs outputs = outputs_of(plan->given, block);
    zero(member->own->block_sums.norm_weight, member->own->block_sums.count);
    forward_again(member, block, outputs, back);
    scan_and_gate_backward(member, block, outputs, back);
    meet(team);
    gather_d_xd(member, M, back);
    multiply_part(team, plan->H, outputs.count, (Left){back->d_out, 1, HP},
                  rows_of(work->y, E, EP), back->sums.out, EP, 1);
    multiply_part(team, E, M, (Left){back->d_dt, 1, EP}, rows_of(work->xd, plan->R, SP),
                  back->sums.dt_weight, plan->RP, 1);
    meet(team);
    const float *d_xd = member->owns[0].d_xd;
    multiply_part(team, M, plan->S, (Left){d_xd, SP, 1}, plan->x_rows, back->d_u, EP, 1);
    multiply_part(team, plan->S, M, (Left){d_xd, 1, SP}, rows_of(work->u, E, EP),
                  back->sums.x_proj, EP, 1);
    meet(team);
    convolution_backward(member, block, back);
    meet(team);
    multiply_part(team, M, E, (Left){back->d_v, EP, 1}, plan->in_x_rows, back->d_inputs, HP, 0);
    multiply_part(team, E, M, (Left){back->d_v, 1, EP}, rows_of(work->inputs, plan->H, HP),
                  back->sums.in_x, HP, 1);
    meet(team);
    multiply_part(team, outputs.count, E, (Left){back->d_gated, EP, 1}, plan->in_z_rows,
                  back->d_inputs + outputs.first * HP, outputs.step * HP, 1);
    Right with_output = rows_of(work->inputs + outputs.first * HP, plan->H, outputs.step * HP);
    multiply_part(team, E, outputs.count, (Left){back->d_gated, 1, EP}, with_output,
                  back->sums.in_z, HP, 1);
    meet(team);
    norm_to_d_x(member, block, back);
    meet(team);
    residual_to_d_x(member, block, outputs);
    add_to(member->own->sums.norm_weight, member->own->block_sums.norm_weight,
           member->own->sums.count);
}

typedef struct {
    const Plan *plan;
    const Back *backs; /* one a task */
    Own *owns;         /* one a task, or one a member */
} BackwardTasks;

static void backward_rows(const Plan *plan, Share share, Back back, Member member) {
    size_t L = plan->given->length, segment = plan->cut.segment;
    zero(member.own->sums.norm_weight, member.own->sums.count);
    if (member.team.index == 0) zero(back.sums.in_x, back.sums.count);
    meet(member.team);
    for (size_t row = share.first; row < share.end; row += plan->cut.rows) {
        size_t rows = smaller_size(plan->cut.rows, share.end - row);
        for (size_t start = (L - 1) / segment * segment;; start -= segment) {
            Block block = {row, rows, start, smaller_size(segment, L - start)};
            backward_block(&member, block, &back);
            if (!start) break;
        }
    }
}

static void backward_task(void *context, int64_t task) {
    const BackwardTasks *tasks = context;
    Team alone = {0, 1, NULL};
    Own *own = tasks->owns + task;
    Member member = {tasks->plan, alone, lanes_of(tasks->plan, alone), own, own};
    backward_rows(tasks->plan, share_of(tasks->plan, task), tasks->backs[task], member);
}

static void backward_together(void *context, Team team) {
    const BackwardTasks *tasks = context;
    Member member = {tasks->plan, team, lanes_of(tasks->plan, team), tasks->owns,
                     tasks->owns + team.index};
    backward_rows(tasks->plan, share_of(tasks->plan, 0), tasks->backs[0], member);
}

/* (rows, columns) without padding from `sums` with `width` floats a row. */
static void unpad(float *to, const float *sums, size_t rows, size_t columns, size_t width) {
    for (size_t r = 0; r < rows; r++)
        memcpy(to + r * columns, sums + r * width, columns * sizeof(float));
}

/* (columns, rows) of (rows, columns), without padding. */
static void unpad_transposed(float *to, const float *sums, size_t rows, size_t columns,
                             size_t width) {
    for (size_t c = 0; c < columns; c++)
        for (size_t r = 0; r < rows; r++) to[c * rows + r] = sums[r * width + c];
}

static void write_vectors(const Plan *plan, const VectorSums *sums) {
    const Layer *given = plan->given;
    size_t E = plan->E, H = plan->H;
    if (given->norm_weight) {
        memcpy(given->d_norm_weight, sums->norm_weight, H * sizeof(float));
        if (given->d_norm_bias) memcpy(given->d_norm_bias, sums->norm_bias, H * sizeof(float));
    }
    unpad_transposed(given->d_conv_weight, sums->conv_weight, plan->K, E, plan->EP);
    if (given->d_conv_bias) memcpy(given->d_conv_bias, sums->conv_bias, E * sizeof(float));
    memcpy(given->d_dt_bias, sums->dt_bias, E * sizeof(float));
    memcpy(given->d_D, sums->D, E * sizeof(float));
}

static void write_matrices(const Plan *plan, const MatrixSums *sums) {
    const Layer *given = plan->given;
    size_t E = plan->E, H = plan->H, EP = plan->EP, HP = plan->HP, N = plan->N, R = plan->R;
    unpad(given->d_in_proj, sums->in_x, E, H, HP);
    unpad(given->d_in_proj + E * H, sums->in_z, E, H, HP);
    unpad(given->d_x_proj, sums->x_proj, R + N, E, EP);
    unpad(given->d_x_proj + (R + N) * E, sums->x_proj + (R + plan->NP) * EP, N, E, EP);
    unpad(given->d_dt_weight, sums->dt_weight, E, R, plan->RP);
    /* A = -exp(A_log), and `decay` is A log2(e). */
    for (size_t i = 0; i < N * EP; i++) sums->A[i] *= plan->decay[i] * LN_2;
    unpad_transposed(given->d_A_log, sums->A, N, E, EP);
    unpad(given->d_out_proj, sums->out, H, E, EP);
}

static void take_all(Plan *plan, Arena *arena, Back *backs, Own *owns) {
    prepare_weights(plan, arena, 1);
    for (size_t i = 0; i < plan->tasks; i++) take_back(plan, arena, &backs[i]);
    for (size_t i = 0; i < plan->tasks * plan->members; i++) take_own(plan, arena, &owns[i]);
}

static int layer_backward(const Layer *given) {
    Plan plan = sizes_of(given, 1);
    Back backs[MOST_THREADS];
    Own owns[MOST_THREADS];
    Arena arena = {0};
    take_all(&plan, &arena, backs, owns);
    if (!provide(&arena)) return 1;
    take_all(&plan, &arena, backs, owns);
    for (size_t i = 0; i < plan.members; i++) zero(owns[i].sums.norm_weight, owns[i].sums.count);
    BackwardTasks tasks = {&plan, backs, owns};
    if (plan.members > 1) run_team(plan.members, backward_together, &tasks);
    else run_tasks(plan.tasks, backward_task, &tasks);
    for (size_t i = 1; i < plan.tasks * plan.members; i++)
        add_to(owns[0].sums.norm_weight, owns[i].sums.norm_weight, owns[0].sums.count);
    for (size_t i = 1; i < plan.tasks; i++)
        add_to(backs[0].sums.in_x, backs[i].sums.in_x, backs[0].sums.count);
    write_vectors(&plan, &owns[0].sums);
    write_matrices(&plan, &backs[0].sums);
    free(arena.from);
    return 0;
}
