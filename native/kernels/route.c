/* route(chosen, share, logits[, bias]; k, normalize, sigmoid, groups, kept, leading): each row's best experts, best first,
 * ties by lower index: their indices, and their shares. A share is an expert's part of the softmax of all, or of the
 * chosen ones' if `normalize`; or its sigmoid. Best are the largest logits; or shares plus biases, which choose but do not
 * weigh. Of several groups only the `kept` best are chosen from: those with the largest sums of the `leading` best. */
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

/* Put what is in other groups than the best below everything. */
static void drop_groups(float *score, int32_t n, int32_t groups, int32_t kept, int32_t leading) {
    float sum[LT_MAX_EXPERTS];
    uint8_t keep[LT_MAX_EXPERTS] = {0};
    const int32_t size = n / groups;
    for (int32_t g = 0; g < groups; g++) {
        const float *own = score + g * size;
        sum[g] = 0;
        for (int32_t i = 0, last = -1; i < leading; i++) sum[g] += own[last = next_largest(own, size, last)];
    }
    for (int32_t i = 0, last = -1; i < kept; i++) keep[last = next_largest(sum, groups, last)] = 1;
    for (int32_t i = 0; i < n; i++) score[i] = keep[i / size] ? score[i] : -INFINITY;
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[2].cols, k = op->arg[0].cols, *dim = op->dim;
    const int32_t normalize = dim[1], sigmoid = dim[2], groups = dim[3], kept = dim[4], leading = dim[5];
    const float *bias = lt_row(op, step, 3, 0);
    float power[LT_MAX_EXPERTS + 16], score[LT_MAX_EXPERTS];
    for (int32_t row = begin; row < end; row++) {
        int32_t *chosen = lt_row(op, step, 0, row);
        float *share = lt_row(op, step, 1, row);
        const float *x = lt_row(op, step, 2, row);
        const f32x16 most = vset1(x[next_largest(x, n, -1)]);
        f32x16 sum = vset1(0);
        for (int32_t i = 0; i < n; i += 16) {
            const f32x16 logits = load(x + i, n - i), e = vexp(sigmoid ? vsub(vset1(0), logits) : vsub(logits, most));
            vstore(power + i, sigmoid ? vdiv(vset1(1), vadd(vset1(1), e)) : e);
            sum = vadd(sum, e);
        }
        float total = sigmoid ? 1 : vsum(sum);
        for (int32_t i = 0; i < n; i++) {
            const float whole = power[i] / total;
            score[i] = bias ? whole + bias[i] : sigmoid ? whole : x[i];
        }
        if (groups > 1) drop_groups(score, n, groups, kept, leading);
        for (int32_t i = 0; i < k; i++) chosen[i] = next_largest(score, n, i ? chosen[i - 1] : -1);
        if (normalize) total = 0;
        for (int32_t i = 0; i < k; i++) {
            share[i] = power[chosen[i]];
            if (normalize) total += share[i];
        }
        if (normalize) total += 1e-20f; /* sigmoids can all be 0 */
        for (int32_t i = 0; i < k; i++) share[i] /= total;
    }
}

LT_KERNEL(route, lt_rows, run);
