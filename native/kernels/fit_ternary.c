/* fit_ternary(codes, scale, x): every row of x as -1, 0 and 1 times a scale of its own, with the least squared error
 * there is. tools/quantizers/ternary.py is the reference.
 *
 * Of n magnitudes beyond a threshold whose sum is S, S^2 / n is what they take from the error. The best ones' mean is
 * s = S / n, and they are those beyond s / 2: another set could be bettered by one element. Their mean is at least
 * that of all, so whatever lies below half of that is not among them; with those gone the mean of what is left is a
 * better bound, and so on. From above, likewise. What lies between the two bounds, mostly little, is sorted and tried. */
#include <math.h>

#include "f32x16.h"
#include "kernel.h"

enum { LANES = 16, FEW = 32 /* what of a row is soon sorted: one in so many */ };

#define EACH_LANE _Pragma("GCC unroll 1") for (int32_t i = 0; i < LANES; i++)

/* Magnitudes from a threshold on: how many, and their sum, lane by lane and then each half added to the other. */
typedef struct {
    int32_t count;
    double sum;
} beyond;

static beyond from(const float *x, int32_t n, float threshold) {
    double sum[LANES] = {0};
    int32_t count[LANES] = {0};
    int32_t k = 0;
    for (; k + LANES <= n; k += LANES) {
        float kept[LANES];
        EACH_LANE kept[i] = fabsf(x[k + i]) >= threshold ? fabsf(x[k + i]) : 0;
        EACH_LANE count[i] += fabsf(x[k + i]) >= threshold;
        EACH_LANE sum[i] += (double)kept[i];
    }
    for (int32_t i = 0; k < n; k++, i++)
        if (fabsf(x[k]) >= threshold) sum[i] += (double)fabsf(x[k]), count[i]++;
    for (int32_t half = LANES / 2; half; half /= 2)
        for (int32_t i = 0; i < half; i++) sum[i] += sum[i + half], count[i] += count[i + half];
    return (beyond){count[0], sum[0]};
}

static float largest(const float *x, int32_t n) {
    f32x16 most = vset1(0);
    int32_t k = 0;
    for (; k + LANES <= n; k += LANES) most = vmax(most, vabs(vload(x + k)));
    if (k < n) most = vmax(most, vabs(vloadn(x + k, n - k)));
    return vhmax(most);
}

/* The least magnitude from a threshold on. */
static float least(const float *x, int32_t n, float threshold) {
    float found[LANES];
    EACH_LANE found[i] = INFINITY;
    int32_t k = 0;
    for (; k + LANES <= n; k += LANES)
        EACH_LANE {
            const float size = fabsf(x[k + i]) >= threshold ? fabsf(x[k + i]) : INFINITY;
            found[i] = size < found[i] ? size : found[i];
        }
    for (; k < n; k++)
        if (fabsf(x[k]) >= threshold && fabsf(x[k]) < found[0]) found[0] = fabsf(x[k]);
    for (int32_t i = 1; i < LANES; i++) found[0] = found[i] < found[0] ? found[i] : found[0];
    return found[0];
}

/* Sorts bits of floats that are not negative, largest first, byte by byte; four times, so they end where they began. */
static void sort(uint32_t *x, uint32_t *other, int32_t n) {
    for (int32_t shift = 0; shift < 32; shift += 8) {
        int32_t place[257] = {0};
        for (int32_t k = 0; k < n; k++) place[256 - (x[k] >> shift & 255)]++;
        for (int32_t i = 0; i < 256; i++) place[i + 1] += place[i];
        for (int32_t k = 0; k < n; k++) other[place[255 - (x[k] >> shift & 255)]++] = x[k];
        uint32_t *sorted = other;
        other = x;
        x = sorted;
    }
}

/* The threshold: the smallest magnitude that does not become 0. */
static float best_threshold(const float *x, int32_t n) {
    const float most_of_all = largest(x, n);
    if (most_of_all == 0) return 0;
    float low = 0, high = nextafterf(most_of_all / 2, INFINITY); /* all below low become 0; none from high on does */
    beyond many = from(x, n, low), few = from(x, n, high);
    for (int32_t before = n + 1, left; left = many.count - few.count, left < before && left > n / FEW; before = left) {
        low = nextafterf((float)(many.sum / many.count / 2), 0); /* whatever was rounded, nothing is left out */
        high = nextafterf((float)(few.sum / few.count / 2), INFINITY);
        many = from(x, n, low);
        few = from(x, n, high);
    }
    float threshold = least(x, n, high);
    if (many.count == few.count) return threshold;
    uint32_t between[LT_MAX_TERNARY + 1], other[LT_MAX_TERNARY];
    int32_t m = 0;
    for (int32_t k = 0; k < n; k++) {
        const float size = fabsf(x[k]);
        memcpy(&between[m], &size, sizeof size);
        m += (size < high) & (size >= low);
    }
    sort(between, other, m);
    double sum = few.sum, most = few.sum * few.sum / few.count;
    for (int32_t k = 0; k < m; k++) {
        float size;
        memcpy(&size, &between[k], sizeof size);
        sum += (double)size;
        const double taken = sum * sum / (few.count + k + 1);
        if (taken > most) most = taken, threshold = size;
    }
    return threshold;
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[2].cols;
    for (int32_t row = begin; row < end; row++) {
        const float *x = lt_row(op, step, 2, row), threshold = best_threshold(x, n);
        int8_t *codes = lt_row(op, step, 0, row);
        for (int32_t k = 0; k < n; k++) codes[k] = (int8_t)((x[k] >= threshold) - (x[k] <= -threshold));
        const beyond all = from(x, n, threshold);
        *(float *)lt_row(op, step, 1, row) = (float)(all.sum / all.count);
    }
}

LT_KERNEL(fit_ternary, lt_rows, run);
