/* fit_grids(codes, scale, zero, x; bits, zeros, halves): every row of x on a uniform grid of its own, the one of
 * tools/quantizers/rtn.py, which says what is searched and is the reference of every step here.
 *
 * Sixteen rows at a time, a row in each lane: so sums run over a row in its order, and nothing crosses lanes. */
#include <math.h>

#include "f32x16.h"
#include "kernel.h"

enum { LANES = 16, TILE = 4096 };

static const float REACHES[] = {0.4f, 0.55f, 0.7f, 0.85f, 1.0f};
static const float FINER[][2] = {{-0.075f, 0.075f}, {-0.0375f, 0.0375f}};
enum { N_REACHES = 5, N_FINER = 2, ROUNDS = 2, ROUNDS_WITH_ZEROS = 4 };

/* Sixteen rows: of those beyond the last, the last again. */
typedef struct {
    const float *row[LANES];
    int32_t group, levels, zeros, halves;
    float *columns; /* TILE columns, a lane for each row */
    int32_t first;  /* of these columns; -1: none yet */
    double total[LANES];
} block;

typedef struct {
    float scale[LANES], zero[LANES];
} grids;

/* What a grid's codes give: of their distances from zero, and these times the values. */
typedef struct {
    double steps[LANES], squares[LANES], products[LANES];
} sums;

/* Not unrolled before it becomes vector instructions. */
#define EACH_LANE _Pragma("GCC unroll 1") for (int32_t i = 0; i < LANES; i++)

/* Four columns of four rows, from `column` on. Words of 16 bytes, which gcc keeps in registers on every ISA. */
typedef float four __attribute__((vector_size(16)));
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t places __attribute__((vector_size(16)));
#define PICK(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

static inline void turn_four(const float *const *row, int32_t column, float *to) {
    four a, b, c, d;
    memcpy(&a, row[0] + column, sizeof a);
    memcpy(&b, row[1] + column, sizeof b);
    memcpy(&c, row[2] + column, sizeof c);
    memcpy(&d, row[3] + column, sizeof d);
    const four ac = PICK(a, c, 0, 4, 1, 5), AC = PICK(a, c, 2, 6, 3, 7);
    const four bd = PICK(b, d, 0, 4, 1, 5), BD = PICK(b, d, 2, 6, 3, 7);
    const four turned[] = {PICK(ac, bd, 0, 4, 1, 5), PICK(ac, bd, 2, 6, 3, 7), PICK(AC, BD, 0, 4, 1, 5),
                           PICK(AC, BD, 2, 6, 3, 7)};
    for (int32_t k = 0; k < 4; k++) memcpy(to + k * LANES, &turned[k], sizeof turned[k]);
}

/* The columns from `first` on, and how many. */
static int32_t turn(block *b, int32_t first) {
    const int32_t n = lt_min(TILE, b->group - first), whole = n & ~3;
    if (b->first == first) return n;
    for (int32_t k = 0; k < whole; k += 4)
        for (int32_t i = 0; i < LANES; i += 4) turn_four(b->row + i, first + k, b->columns + k * LANES + i);
    for (int32_t k = whole; k < n; k++)
        for (int32_t i = 0; i < LANES; i++) b->columns[k * LANES + i] = b->row[i][first + k];
    b->first = first;
    return n;
}

static float inverse(float scale) { return fabsf(scale) > 1e-30f ? 1.0f / scale : 0.0f; }

static void widen(double *to, f32x16 v) {
    float lanes[LANES];
    vstore(lanes, v);
    EACH_LANE to[i] = (double)lanes[i];
}

/* Without zeros of their own, nobody asks for steps. */
static inline __attribute__((always_inline)) void measure_some(block *b, const grids *g, int with_steps, sums *found) {
    float inverses[LANES];
    EACH_LANE inverses[i] = inverse(g->scale[i]);
    const f32x16 by = vload(inverses), zero = vload(g->zero), top = vset1((float)(b->levels - 1)), none = vset1(0);
    f32x16 steps = none, squares = none, products = none;
    for (int32_t first = 0; first < b->group; first += TILE) {
        const int32_t n = turn(b, first);
        for (int32_t k = 0; k < n; k++) {
            const f32x16 x = vload(b->columns + k * LANES);
            const f32x16 code = vmin(vmax(vrint(vadd(vmul(x, by), zero)), none), top), step = vsub(code, zero);
            if (with_steps) steps = vadd(steps, step);
            squares = vadd(squares, vmul(step, step));
            products = vadd(products, vmul(step, x));
        }
    }
    widen(found->steps, steps);
    widen(found->squares, squares);
    widen(found->products, products);
}

static void measure(block *b, const grids *g, sums *found) {
    if (b->zeros) measure_some(b, g, 1, found);
    else measure_some(b, g, 0, found);
}

/* Around their means, where zeros are free to move. */
static void centre(const block *b, sums *s) {
    if (!b->zeros) return;
    EACH_LANE {
        s->squares[i] -= s->steps[i] * s->steps[i] / b->group;
        s->products[i] -= s->steps[i] * b->total[i] / b->group;
    }
}

/* What the best grid for the codes of this one takes from the sum of squares. */
static void promise(block *b, const grids *g, double *found) {
    sums s;
    measure(b, g, &s);
    centre(b, &s);
    EACH_LANE found[i] = s.products[i] * s.products[i] / (s.squares[i] > 0 ? s.squares[i] : 1);
}

static void store_half(float *x) {
    uint16_t halves[LANES];
    vstore_f16(halves, vmax(vmin(vload(x), vset1(65504)), vset1(-65504)));
    vstore(x, vload_f16(halves));
}

/* The grid as it is stored, what its codes take from the sum of squares, and the grid that fits these codes best. */
static void try_stored(block *b, grids *g, double *kept, grids *better) {
    if (b->halves) store_half(g->scale);
    store_half(g->zero);
    sums s;
    measure(b, g, &s);
    EACH_LANE kept[i] = g->scale[i] * (2 * s.products[i] - g->scale[i] * s.squares[i]);
    centre(b, &s);
    EACH_LANE {
        const double best = s.products[i] / (s.squares[i] > 0 ? s.squares[i] : 1);
        const int known = (s.squares[i] > 0) & (fabs(best) > (double)1e-30f);
        const double moved = b->zeros ? g->zero[i] + (s.steps[i] - b->total[i] / (known ? best : 1)) / b->group
                                      : (double)g->zero[i];
        better->scale[i] = known ? (float)best : g->scale[i];
        better->zero[i] = known ? (float)moved : g->zero[i];
    }
}

/* The range of values, which the first grids reach a share of. */
typedef struct {
    float low[LANES], middle[LANES], whole[2][LANES];
    int32_t n_whole;
} range;

static void take_range(block *b, range *r) {
    f32x16 low = vload(b->columns), high = low;
    EACH_LANE b->total[i] = 0;
    for (int32_t first = 0; first < b->group; first += TILE) {
        const int32_t n = turn(b, first);
        for (int32_t k = 0; k < n; k++) {
            const float *x = b->columns + k * LANES;
            low = vmin(low, vload(x));
            high = vmax(high, vload(x));
            EACH_LANE b->total[i] += (double)x[i];
        }
    }
    float highs[LANES];
    vstore(r->low, vadd(low, vset1(0))); /* no zero has a sign then */
    vstore(highs, vadd(high, vset1(0)));
    r->n_whole = b->zeros ? 1 : 2;
    EACH_LANE {
        if (b->zeros) {
            r->middle[i] = (r->low[i] + highs[i]) / 2;
            r->whole[0][i] = (highs[i] - r->low[i]) / (float)(b->levels - 1);
            if (r->low[i] != highs[i]) r->low[i] = NAN; /* where it is a number, all values are alike */
        } else { /* there is one level more below zero: on one side of it, or on the other */
            const float farthest = highs[i] > -r->low[i] ? highs[i] : r->low[i];
            r->whole[0][i] = farthest / (float)(-b->levels / 2);
            r->whole[1][i] = farthest / (float)(b->levels / 2 - 1);
        }
    }
}

static void grid_of(const block *b, const range *r, const float *share, const float *step, grids *g) {
    EACH_LANE {
        g->scale[i] = share[i] * step[i];
        g->zero[i] = (float)(b->levels / 2);
        if (!b->zeros) continue;
        const int flat = !isnan(r->low[i]); /* then: one step from a zero of -1 */
        if (flat) g->scale[i] = r->low[i];
        g->zero[i] = flat ? -1 : (float)(b->levels - 1) / 2 - r->middle[i] * inverse(g->scale[i]);
    }
}

/* From coarse to fine. */
static void search(block *b, const range *r, grids *g) {
    float share[LANES], step[LANES];
    double most[LANES];
    EACH_LANE share[i] = 1, step[i] = r->whole[0][i], most[i] = -INFINITY;
#define COMPARE(SHARE, STEP)                                                                                    \
    do {                                                                                                        \
        float others[LANES], steps[LANES];                                                                      \
        double found[LANES];                                                                                    \
        EACH_LANE others[i] = SHARE, steps[i] = STEP;                                                           \
        grid_of(b, r, others, steps, g);                                                                        \
        promise(b, g, found);                                                                                   \
        EACH_LANE {                                                                                             \
            const int better = found[i] > most[i];                                                              \
            share[i] = better ? others[i] : share[i];                                                           \
            step[i] = better ? steps[i] : step[i];                                                              \
            most[i] = better ? found[i] : most[i];                                                              \
        }                                                                                                       \
    } while (0)
    for (int32_t reach = 0; reach < N_REACHES; reach++)
        for (int32_t w = 0; w < r->n_whole; w++) COMPARE(REACHES[reach], r->whole[w][i]);
    for (int32_t finer = 0; finer < N_FINER; finer++) {
        float around[LANES];
        EACH_LANE around[i] = share[i];
        for (int32_t by = 0; by < 2; by++) COMPARE(around[i] + FINER[finer][by], step[i]);
    }
    grid_of(b, r, share, step, g);
}

static void fit(block *b, grids *best) {
    range r;
    b->first = -1;
    turn(b, 0);
    take_range(b, &r);
    search(b, &r, best);
    grids better, next;
    double most[LANES], kept[LANES];
    try_stored(b, best, most, &better);
    for (int32_t round = 0; round < (b->zeros ? ROUNDS_WITH_ZEROS : ROUNDS); round++) {
        grids tried = better;
        try_stored(b, &tried, kept, &next);
        EACH_LANE {
            const int take = kept[i] > most[i];
            best->scale[i] = take ? tried.scale[i] : best->scale[i];
            best->zero[i] = take ? tried.zero[i] : best->zero[i];
            better.scale[i] = take ? next.scale[i] : better.scale[i];
            better.zero[i] = take ? next.zero[i] : better.zero[i];
            most[i] = take ? kept[i] : most[i];
        }
    }
}

static void round_row(uint8_t *codes, const float *x, int32_t n, float scale, float zero, float top) {
    const float by = inverse(scale);
    for (int32_t k = 0; k < n; k++) {
        const float code = rintf(x[k] * by + zero);
        codes[k] = (uint8_t)(int32_t)(code < 0 ? 0 : code > top ? top : code);
    }
}

static int32_t units(const lt_op *op, const lt_step *step) { return lt_ceil_div(lt_rows(op, step), LANES); }

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    float columns[TILE * LANES];
    const int32_t rows = lt_rows(op, step);
    block b = {.group = op->arg[3].cols, .levels = 1 << op->dim[0], .zeros = op->dim[1], .halves = op->dim[2]};
    b.columns = columns;
    for (int32_t unit = begin; unit < end; unit++) {
        const int32_t n = lt_min(LANES, rows - unit * LANES);
        grids g;
        EACH_LANE b.row[i] = lt_row(op, step, 3, unit * LANES + lt_min(i, n - 1));
        fit(&b, &g);
        for (int32_t i = 0; i < n; i++) {
            const int64_t row = unit * LANES + i;
            *(float *)lt_row(op, step, 1, row) = g.scale[i];
            *(float *)lt_row(op, step, 2, row) = g.zero[i];
            round_row(lt_row(op, step, 0, row), b.row[i], b.group, g.scale[i], g.zero[i], (float)(b.levels - 1));
        }
    }
}

LT_KERNEL(fit_grids, units, run);
