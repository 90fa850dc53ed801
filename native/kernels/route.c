/* route(chosen, share, logits; normalize): each row's largest logits, largest first, ties by lower index: their indices,
 * and their shares of the softmax of all; of the chosen ones' if `normalize`. */
#include "f32x16.h"
#include "kernel.h"

static f32x16 load(const float *x, int32_t n) {
    float lanes[16];
    for (int32_t i = 0; i < 16; i++) lanes[i] = i < n ? x[i] : -INFINITY;
    return vload(lanes);
}

/* The largest of those that come after one of index `last`; 0 where nothing is larger than another. */
static int32_t next_largest(const float *x, int32_t n, int32_t last) {
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++) {
        if (last >= 0 && !(x[i] < x[last] || (x[i] == x[last] && i > last))) continue;
        if (best < 0 || x[i] > x[best]) best = i;
    }
    return best < 0 ? 0 : best;
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[2].cols, k = op->arg[0].cols;
    for (int32_t row = begin; row < end; row++) {
        int32_t *chosen = lt_row(op, step, 0, row);
        float *share = lt_row(op, step, 1, row);
        const float *x = lt_row(op, step, 2, row);
        for (int32_t i = 0; i < k; i++) chosen[i] = next_largest(x, n, i ? chosen[i - 1] : -1);
        const f32x16 most = vset1(x[chosen[0]]);
        f32x16 sum = vset1(0);
        for (int32_t i = 0; i < n; i += 16) sum = vadd(sum, vexp(vsub(load(x + i, n - i), most)));
        float total = 0;
        for (int32_t i = 0; i < k; i++) total += share[i] = vfirst(vexp(vsub(vset1(x[chosen[i]]), most)));
        if (!op->dim[1]) total = vsum(sum);
        for (int32_t i = 0; i < k; i++) share[i] /= total;
    }
}

LT_KERNEL(route, lt_rows, run);
