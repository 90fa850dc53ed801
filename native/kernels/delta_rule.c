/* delta_rule(y, q, k, v, decay, beta; at, k_heads, tiled): the gated delta rule (Yang et al. 2025), token by token. Each
 * head remembers a matrix S of a row per column of k. A token shrinks it, asks it for the value at k, and corrects what
 * it was told; then the head's result is the value at q:
 *
 *     S = decay S;  S += k (beta (v - k S));  y = q S
 *
 * Heads of v share those of q and k: consecutive ones, or, if tiled, those k_heads apart. */
#include "recurrent.h"

/* k S, S decayed. */
static f32x16 known(const float *S, const float *k, f32x16 decay, int32_t dim) {
    f32x16 sums[SUMS];
    for (int32_t j = 0; j < SUMS; j++) sums[j] = vset1(0);
    int32_t i = 0;
    for (; i + SUMS <= dim; i += SUMS)
        for (int32_t j = 0; j < SUMS; j++)
            sums[j] = vfma(vmul(vload(S + (i + j) * 16), decay), vset1(k[i + j]), sums[j]);
    for (; i < dim; i++) sums[0] = vfma(vmul(vload(S + i * 16), decay), vset1(k[i]), sums[0]);
    return total(sums);
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t k_heads = op->dim[1], heads = op->arg[4].cols, parts = parts_of_head(op);
    const int32_t dim = op->arg[1].cols / k_heads, width = op->arg[3].cols / heads;
    for (int32_t part = begin; part < end; part++) {
        const int32_t head = part / parts, first = part % parts * 16, n = lt_min(16, width - first);
        const int32_t shared = op->dim[2] ? head % k_heads : head / (heads / k_heads);
        float *S = remembered(op, step, part, dim);
        for (int32_t row = 0; row < step->n_tokens; row++) {
            float *y = (float *)lt_row(op, step, 0, row) + head * width + first;
            const float *q = (const float *)lt_row(op, step, 1, row) + shared * dim;
            const float *k = (const float *)lt_row(op, step, 2, row) + shared * dim;
            const float *from = (const float *)lt_row(op, step, 3, row) + head * width + first;
            const f32x16 decay = vset1(((const float *)lt_row(op, step, 4, row))[head]);
            const f32x16 beta = vset1(((const float *)lt_row(op, step, 5, row))[head]);
            const f32x16 v = n < 16 ? vloadn(from, n) : vload(from);
            const f32x16 delta = vmul(vsub(v, known(S, k, decay, dim)), beta);
            vstoren(y, remember(S, k, q, delta, decay, dim), n);
        }
    }
}

LT_KERNEL(delta_rule, units, run);
