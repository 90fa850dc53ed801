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

/* Whether any of x[begin..end) is above the bound: without branches, so that compilers vectorize it. */
static int any_above(const float *x, int32_t begin, int32_t end, float bound) {
    int any = 0;
    for (int32_t i = begin; i < end; i++) any |= x[i] > bound;
    return any;
}

enum { BLOCK = 128 };

int32_t lt_top_k(const float *x, int32_t n, int32_t k, int32_t *heap) {
    if (k < 1 || k > n) return LT_BAD_ARGUMENT;
    for (int32_t i = 0; i < k; i++) heap[i] = i;
    for (int32_t i = k / 2 - 1; i >= 0; i--) sift_down(x, heap, k, i);
    for (int32_t begin = k; begin < n; begin += BLOCK) {
        const int32_t end = n - begin < BLOCK ? n : begin + BLOCK;
        if (!any_above(x, begin, end, x[heap[0]])) continue;
        for (int32_t i = begin; i < end; i++) {
            if (!(x[i] > x[heap[0]])) continue; /* ties keep the lower index, which came first */
            heap[0] = i;
            sift_down(x, heap, k, 0);
        }
    }
    for (int32_t left = k - 1; left > 0; left--) { /* the smallest goes last */
        int32_t t = heap[0];
        heap[0] = heap[left];
        heap[left] = t;
        sift_down(x, heap, left, 0);
    }
    return LT_OK;
}
