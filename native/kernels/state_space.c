/* state_space(y, x, b, c, dt, rate, skip; at, groups): Mamba 2's recurrence (Dao & Gu 2024), token by token. Each head
 * remembers a matrix S of a row per column of b. A token shrinks it and adds what it brings; then the head's result is
 * the value at c, and a share of x as it came:
 *
 *     S = e^(-rate dt) S + b (dt x);  y = c S + skip x
 *
 * Consecutive heads share a group's b and c. */
#include "recurrent.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t groups = op->dim[1], heads = op->arg[4].cols, parts = parts_of_head(op);
    const int32_t dim = op->arg[2].cols / groups, width = op->arg[1].cols / heads;
    for (int32_t part = begin; part < end; part++) {
        const int32_t head = part / parts, first = part % parts * 16, n = lt_min(16, width - first);
        const int32_t group = head / (heads / groups);
        const f32x16 rate = vset1(((const float *)lt_row(op, step, 5, 0))[head]);
        const f32x16 skip = vset1(((const float *)lt_row(op, step, 6, 0))[head]);
        float *S = remembered(op, step, part, dim);
        for (int32_t row = 0; row < step->n_tokens; row++) {
            const float *from = (const float *)lt_row(op, step, 1, row) + head * width + first;
            const float *b = (const float *)lt_row(op, step, 2, row) + group * dim;
            const float *c = (const float *)lt_row(op, step, 3, row) + group * dim;
            const f32x16 dt = vset1(((const float *)lt_row(op, step, 4, row))[head]);
            const f32x16 x = n < 16 ? vloadn(from, n) : vload(from);
            const f32x16 decay = vexp(vsub(vset1(0), vmul(rate, dt)));
            const f32x16 y = vfma(x, skip, remember(S, b, c, vmul(x, dt), decay, dim));
            vstoren((float *)lt_row(op, step, 0, row) + head * width + first, y, n);
        }
    }
}

LT_KERNEL(state_space, units, run);
