/* state_space(y, x, b, c, dt, rate, skip; at, groups): Mamba 2's recurrence (Dao & Gu 2024), token by token. Each head
 * remembers a matrix S of a row per column of b. A token shrinks it and adds what it brings; then the head's result is
 * the value at c, and a share of x as it came:
 *
 *     S = e^(-rate dt) S + b (dt x);  y = c S + skip x
 *
 * Consecutive heads share a group's b and c. A part is sixteen columns of a head, which know nothing of the others; its
 * memory is float [columns of b][16], part by part, from `at` on. */
#include "f32x16.h"
#include "kernel.h"

enum { SUMS = 4 }; /* each of every fourth row of S */

static int32_t parts_of_head(const lt_op *op) { return lt_ceil_div(op->arg[1].cols / op->arg[4].cols, 16); }

static int32_t units(const lt_op *op, const lt_step *step) {
    (void)step;
    return op->arg[4].cols * parts_of_head(op);
}

/* One token: changes S, [dim][16]; returns its value at c. */
static f32x16 follow(float *S, const float *b, const float *c, f32x16 brought, f32x16 decay, int32_t dim) {
    f32x16 y[SUMS];
    for (int32_t j = 0; j < SUMS; j++) y[j] = vset1(0);
    int32_t i = 0;
    for (; i + SUMS <= dim; i += SUMS)
        for (int32_t j = 0; j < SUMS; j++) {
            const f32x16 s = vfma(brought, vset1(b[i + j]), vmul(vload(S + (i + j) * 16), decay));
            vstore(S + (i + j) * 16, s);
            y[j] = vfma(s, vset1(c[i + j]), y[j]);
        }
    for (; i < dim; i++) {
        const f32x16 s = vfma(brought, vset1(b[i]), vmul(vload(S + i * 16), decay));
        vstore(S + i * 16, s);
        y[0] = vfma(s, vset1(c[i]), y[0]);
    }
    return vadd(vadd(y[0], y[1]), vadd(y[2], y[3]));
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t groups = op->dim[1], heads = op->arg[4].cols, parts = parts_of_head(op);
    const int32_t dim = op->arg[2].cols / groups, width = op->arg[1].cols / heads;
    for (int32_t part = begin; part < end; part++) {
        const int32_t head = part / parts, first = part % parts * 16, n = lt_min(16, width - first);
        const int32_t group = head / (heads / groups);
        const f32x16 rate = vset1(((const float *)lt_row(op, step, 5, 0))[head]);
        const f32x16 skip = vset1(((const float *)lt_row(op, step, 6, 0))[head]);
        const int64_t at = op->dim[0] + (int64_t)part * dim * 16;
        const size_t nbytes = (size_t)dim * 16 * sizeof(float);
        float *S = (float *)step->space[LT_AFTER] + at;
        if (step->pos) memcpy(S, (const float *)step->space[LT_BEFORE] + at, nbytes);
        else memset(S, 0, nbytes);
        for (int32_t row = 0; row < step->n_tokens; row++) {
            const float *from = (const float *)lt_row(op, step, 1, row) + head * width + first;
            const float *b = (const float *)lt_row(op, step, 2, row) + group * dim;
            const float *c = (const float *)lt_row(op, step, 3, row) + group * dim;
            const f32x16 dt = vset1(((const float *)lt_row(op, step, 4, row))[head]);
            const f32x16 x = n < 16 ? vloadn(from, n) : vload(from);
            const f32x16 decay = vexp(vsub(vset1(0), vmul(rate, dt)));
            const f32x16 y = vfma(x, skip, follow(S, b, c, vmul(x, dt), decay, dim));
            vstoren((float *)lt_row(op, step, 0, row) + head * width + first, y, n);
        }
    }
}

LT_KERNEL(state_space, units, run);
