/* The k largest of n: a binary heap of the best so far, its smallest on top. */
#include "api.h"

/* Whether x[a] ranks below x[b]. */
static int below(const float *x, int32_t a, int32_t b) { return x[a] < x[b] || (x[a] == x[b] && a > b); }

static void sift_down(const float *x, int32_t *heap, int32_t n, int32_t at) {
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= n) return;
        if (child + 1 < n && below(x, heap[child + 1], heap[child])) child++;
        if (!below(x, heap[child], heap[at])) return;
        int32_t t = heap[at];
        heap[at] = heap[child];
        heap[child] = t;
        at = child;
    }
}

int32_t lt_top_k(const float *x, int32_t n, int32_t k, int32_t *heap) {
    if (k < 1 || k > n) return LT_BAD_ARGUMENT;
    for (int32_t i = 0; i < k; i++) heap[i] = i;
    for (int32_t i = k / 2 - 1; i >= 0; i--) sift_down(x, heap, k, i);
    for (int32_t i = k; i < n; i++) {
        if (!(x[i] > x[heap[0]])) continue; /* ties keep the lower index, which came first */
        heap[0] = i;
        sift_down(x, heap, k, 0);
    }
    for (int32_t left = k - 1; left > 0; left--) { /* the smallest goes last */
        int32_t t = heap[0];
        heap[0] = heap[left];
        heap[left] = t;
        sift_down(x, heap, left, 0);
    }
    return LT_OK;
}
