/* What attention works on; attention.h is the whole.
 *
 * A family of types, float or integer, says what `queries` is, ABREAST, and
 *
 *     take_query(q, j, from, n, columns)   lays aside query j, n floats
 *     score_tile(s, score, cache, at, columns)   score[j][t] = q_j . k[at + t], but for the scales of s
 *     blend_tile(s, of, weight, keep, at)   y_j = y_j * keep[j] + sum of weight[j][t] * v[at + t], over what j has seen */
#pragma once
#include <math.h>

#include "kv_cache.h"

enum {
    TILE = 128,   /* positions whose scores are held at a time */
    QUERIES = 32, /* that meet a tile before the next one comes */
    WIDEST = 256, /* columns; wider heads come query by query and WIDEST columns of values at a time */
    EXPS = 8,     /* exponentials side by side */
    FEW = 4,      /* queries at a time that wait for memory */
};

typedef struct queries queries; /* as a family of types wants them */

/* Some queries on one kv head, in the order of their rows. Softmax so far: the largest score, and the sum of
 * e^(score - most). */
typedef struct {
    int32_t count;
    int32_t positions[QUERIES]; /* that each may see */
    int32_t first[QUERIES];     /* the first of them in its window */
    int32_t seen[QUERIES];      /* positions of the tile at hand that it may see, */
    int32_t passed[QUERIES];    /* and how many of these lie before its window */
    const queries *q;
    float scale;                /* of their scores */
    float cap;                  /* of these then; 0: none */
    float *y[QUERIES];          /* the columns of the result that are being made */
    float most[QUERIES], sum[QUERIES];
    float top[QUERIES];         /* the largest weight of the tile at hand */
} batch;

/* Columns of a kv head, and the vectors of values that are blended of them. */
typedef struct {
    const kv_head *cache;
    int32_t columns, first, vectors;
} slab;

typedef float scores[QUERIES][TILE];

/* How many of `left` queries to take at a time: one of the cases of AT_A_TIME. */
static inline int32_t abreast(int32_t left) {
    int32_t n = ABREAST;
    while (n > left) n /= 2;
    return n;
}
#define UP_TO(n) ((n) < ABREAST ? (n) : ABREAST)
#define AT_A_TIME(n, call)                                                                                      \
    switch (n) {                                                                                                \
    case 8: call(UP_TO(8)); break;                                                                              \
    case 4: call(UP_TO(4)); break;                                                                              \
    case 2: call(UP_TO(2)); break;                                                                              \
    default: call(1);                                                                                           \
    }
