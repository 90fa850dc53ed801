/* delta_rule(y, q, k, v, decay, beta; at, k_heads, tiled): the gated delta rule (Yang et al. 2025), token by token. Each
 * head remembers a matrix S of a row per column of k. A token shrinks it, asks it for the value at k, and corrects what
 * it was told; then the head's result is the value at q:
 *
 *     S = decay S;  S += k (beta (v - k S));  y = q S
 *
 * Heads of v share those of q and k: consecutive ones, or, if tiled, those k_heads apart. A part is sixteen columns of a
 * head, which know nothing of the others; its memory is float [columns of k][16], part by part, from `at` on. */
#include "f32x16.h"
#include "kernel.h"

enum { SUMS = 4 }; /* each of every fourth row of S */

static int32_t parts_of_head(const lt_op *op) { return lt_ceil_div(op->arg[3].cols / op->arg[4].cols, 16); }

static int32_t units(const lt_op *op, const lt_step *step) {
    (void)step;
    return op->arg[4].cols * parts_of_head(op);
}

static inline f32x16 total(const f32x16 *sums) { return vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])); }

/* One token: changes S, [dim][16]; returns its value at q. */
static f32x16 follow(float *S, const float *q, const float *k, f32x16 v, f32x16 decay, f32x16 beta, int32_t dim) {
    f32x16 known[SUMS], y[SUMS];
    for (int32_t j = 0; j < SUMS; j++) known[j] = y[j] = vset1(0);
    int32_t i = 0;
    for (; i + SUMS <= dim; i += SUMS)
        for (int32_t j = 0; j < SUMS; j++)
            known[j] = vfma(vmul(vload(S + (i + j) * 16), decay), vset1(k[i + j]), known[j]);
    for (; i < dim; i++) known[0] = vfma(vmul(vload(S + i * 16), decay), vset1(k[i]), known[0]);

    const f32x16 delta = vmul(vsub(v, total(known)), beta);
    for (i = 0; i + SUMS <= dim; i += SUMS)
        for (int32_t j = 0; j < SUMS; j++) {
            const f32x16 s = vfma(delta, vset1(k[i + j]), vmul(vload(S + (i + j) * 16), decay));
            vstore(S + (i + j) * 16, s);
            y[j] = vfma(s, vset1(q[i + j]), y[j]);
        }
    for (; i < dim; i++) {
        const f32x16 s = vfma(delta, vset1(k[i]), vmul(vload(S + i * 16), decay));
        vstore(S + i * 16, s);
        y[0] = vfma(s, vset1(q[i]), y[0]);
    }
    return total(y);
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t k_heads = op->dim[1], heads = op->arg[4].cols, parts = parts_of_head(op);
    const int32_t dim = op->arg[1].cols / k_heads, width = op->arg[3].cols / heads;
    for (int32_t part = begin; part < end; part++) {
        const int32_t head = part / parts, first = part % parts * 16, n = lt_min(16, width - first);
        const int32_t shared = op->dim[2] ? head % k_heads : head / (heads / k_heads);
        const int64_t at = op->dim[0] + (int64_t)part * dim * 16;
        const size_t nbytes = (size_t)dim * 16 * sizeof(float);
        float *S = (float *)step->space[LT_AFTER] + at;
        if (step->pos) memcpy(S, (const float *)step->space[LT_BEFORE] + at, nbytes);
        else memset(S, 0, nbytes);
        for (int32_t row = 0; row < step->n_tokens; row++) {
            float *y = (float *)lt_row(op, step, 0, row) + head * width + first;
            const float *q = (const float *)lt_row(op, step, 1, row) + shared * dim;
            const float *k = (const float *)lt_row(op, step, 2, row) + shared * dim;
            const float *v = (const float *)lt_row(op, step, 3, row) + head * width + first;
            const f32x16 decay = vset1(((const float *)lt_row(op, step, 4, row))[head]);
            const f32x16 beta = vset1(((const float *)lt_row(op, step, 5, row))[head]);
            vstoren(y, follow(S, q, k, n < 16 ? vloadn(v, n) : vload(v), decay, beta, dim), n);
        }
    }
}

LT_KERNEL(delta_rule, units, run);
