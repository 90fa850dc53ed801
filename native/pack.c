/* Codes out of the bits of blocks, and codes into the layouts of runtime/formats/: what a model takes to open whose
 * file has others. And back to floats: what it takes to convert one. All are loops over bytes, words or floats side by
 * side, which compilers vectorize. */
#include <string.h>

#include "api.h"

#define LT_INLINE static inline __attribute__((always_inline))

enum { ROWS = 16, BYTES = 4, DIGITS = 5, MAX_COLUMNS = 32 };

static const uint64_t ONES = 0x0101010101010101u; /* times a byte: that byte eight times */

/* 16 rows of codes, `*stride` apart, from `column` on: in the matrix, or, at its edges, copied between bytes of `pad`. */
static const uint8_t *rows_of(const uint8_t *codes, int64_t rows, int64_t cols, int64_t column, int32_t columns,
                              uint8_t pad, uint8_t *edge, int64_t *stride) {
    *stride = cols;
    if (rows >= ROWS && cols - column >= columns) return codes + column;
    const int64_t left = cols - column < columns ? cols - column : columns;
    memset(edge, pad, (size_t)(ROWS * columns));
    for (int32_t r = 0; r < ROWS && r < rows; r++) memcpy(edge + r * columns, codes + r * cols + column, (size_t)left);
    *stride = columns;
    return edge;
}

/* Up to 32 codes of a row, as bytes and as pairs of steps of four columns. */
typedef uint8_t codes_of_row __attribute__((vector_size(MAX_COLUMNS)));
typedef uint64_t pairs_of_row __attribute__((vector_size(MAX_COLUMNS)));

/* A row's part of one plane of a chunk: `width` bits of every code from `shift` up, as many steps to a word as fit in
 * its bytes. Words are a vector apart. */
LT_INLINE void pack_plane(const codes_of_row *codes, int32_t pairs, int32_t width, int32_t shift, uint8_t *to) {
    const pairs_of_row fields = (pairs_of_row)*codes >> shift & ONES * ((1u << width) - 1);
    const pairs_of_row joined = fields | fields >> (32 - width);
    const int32_t each = 4 / width; /* pairs in a word */
    for (int32_t p = 0; p < pairs; p += each, to += ROWS * BYTES) {
        uint32_t word = 0;
        for (int32_t f = 0; f < each; f++) word |= (uint32_t)joined[p + f] << 2 * width * f;
        memcpy(to, &word, sizeof word);
    }
}

/* A chunk of 16 rows; adds the bits that any code has to those seen. */
LT_INLINE void pack_chunk(const uint8_t *from, int64_t stride, uint8_t add, int32_t bits, int32_t columns,
                          codes_of_row *seen, uint8_t *to) {
    const int32_t low = bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
    for (int32_t r = 0; r < ROWS; r++, from += stride, to += BYTES) {
        codes_of_row codes = {0};
        memcpy(&codes, from, (size_t)columns);
        codes += add;
        *seen |= codes;
        pack_plane(&codes, columns / 8, low, 0, to);
        if (bits > low) pack_plane(&codes, columns / 8, bits - low, low, to + low * columns / 32 * ROWS * BYTES);
    }
}

#define PACK_CHUNK(BITS, COLUMNS) \
    case BITS << 8 | COLUMNS: pack_chunk(from, stride, add, BITS, COLUMNS, &seen, data); break

int32_t lt_pack_codes(const uint8_t *codes, int64_t rows, int64_t cols, uint8_t add, int32_t bits, int32_t chunk,
                      uint8_t *data) {
    codes_of_row seen = {0};
    if (chunk < 1 || chunk > MAX_COLUMNS) return LT_BAD_ARGUMENT;
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t column = 0; column < cols; column += chunk, data += bits * chunk * 2) {
            uint8_t edge[ROWS * MAX_COLUMNS];
            int64_t stride;
            const uint8_t *from =
                rows_of(codes + row * cols, rows - row, cols, column, chunk, (uint8_t)-add, edge, &stride);
            switch (bits << 8 | chunk) { /* loops of known lengths are several times as fast */
                PACK_CHUNK(1, 32);
                PACK_CHUNK(2, 32);
                PACK_CHUNK(2, 16);
                PACK_CHUNK(3, 32);
                PACK_CHUNK(4, 32);
                PACK_CHUNK(4, 16);
                PACK_CHUNK(5, 32);
                PACK_CHUNK(6, 32);
                PACK_CHUNK(6, 16);
                PACK_CHUNK(8, 32);
                default: return LT_BAD_ARGUMENT;
            }
        }
    uint8_t any = 0;
    for (int32_t i = 0; i < MAX_COLUMNS; i++) any |= i < chunk ? seen[i] : 0;
    return any >> bits ? LT_BAD_ARGUMENT : LT_OK;
}

int32_t lt_pack_trits(const int8_t *codes, int64_t rows, int64_t cols, uint8_t *data) {
    uint8_t wrong = 0;
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t column = 0; column < cols; column += DIGITS * BYTES, data += ROWS * BYTES) {
            uint8_t edge[ROWS * MAX_COLUMNS], m[ROWS * BYTES] = {0}; /* trits, each plus 1, as a number of base 3 */
            int64_t stride;
            const uint8_t *from = rows_of((const uint8_t *)codes + row * cols, rows - row, cols, column, DIGITS * BYTES,
                                          0, edge, &stride);
            for (int32_t d = 0; d < DIGITS; d++) {
                uint8_t code[ROWS * BYTES];
                for (int32_t r = 0; r < ROWS; r++) memcpy(code + r * BYTES, from + r * stride + d * BYTES, BYTES);
                for (int32_t i = 0; i < ROWS * BYTES; i++) {
                    const uint8_t trit = (uint8_t)(code[i] + 1);
                    wrong |= trit > 2;
                    m[i] = (uint8_t)(3 * m[i] + trit);
                }
            }
            for (int32_t i = 0; i < ROWS * BYTES; i++) /* 128 + round(256 * (m - 121) / 243) */
                data[i] = (uint8_t)(m[i] + 1 + (uint16_t)(26 * m[i] + 13) / 486);
        }
    return wrong ? LT_BAD_ARGUMENT : LT_OK;
}

/* Where blocks are, and the codes that they become. */
typedef struct {
    const uint8_t *blocks;
    int64_t n;
    int32_t nbytes, columns;
    uint8_t *codes;
} work;

/* A run of bytes holds first the codes in all their lowest bits, then those in the next, and so on. The first field
 * finds nothing in the codes. */
LT_INLINE void take_runs(const work *w, const lt_field *f, int32_t width, int32_t run, int first) {
    const uint64_t mask = ONES * ((1u << width) - 1);
    const work own = *w; /* locals, which no byte that is written can be part of */
    const lt_field at = *f;
    for (int64_t b = 0; b < own.n; b++) {
        const uint8_t *from = own.blocks + b * own.nbytes + at.begin, *end = from + at.count;
        uint8_t *to = own.codes + b * own.columns;
        for (; from < end; from += run)
            for (int32_t k = 0; k < 8; k += width, to += run)
                for (int32_t i = 0; i < run; i += 8) {
                    uint64_t word, before = 0;
                    memcpy(&word, from + i, 8);
                    if (!first) memcpy(&before, to + i, 8);
                    before |= (word >> k & mask) << at.shift;
                    memcpy(to + i, &before, 8);
                }
    }
}

/* Eight codes of `width` bits side by side, each in a byte of its own: halves are moved apart, then their halves. */
LT_INLINE uint64_t spread(uint64_t codes, int32_t width) {
    codes = (codes | codes << (32 - 4 * width)) & 0x0000000100000001u * ((1ull << 4 * width) - 1);
    codes = (codes | codes << (16 - 2 * width)) & 0x0001000100010001u * ((1ull << 2 * width) - 1);
    return (codes | codes << (8 - width)) & ONES * ((1ull << width) - 1);
}

/* Runs of one byte: eight codes at a time, fewer at the end of a block. */
LT_INLINE void take_bytes(const work *w, const lt_field *f, int32_t width, int first) {
    const work own = *w;
    const lt_field at = *f;
    for (int64_t b = 0; b < own.n; b++) {
        const uint8_t *from = own.blocks + b * own.nbytes + at.begin;
        uint8_t *to = own.codes + b * own.columns;
        int32_t left = at.count;
        for (; left >= width; left -= width, from += width, to += 8) {
            uint64_t codes = 0, before = 0;
            memcpy(&codes, from, (size_t)width);
            if (!first) memcpy(&before, to, 8);
            before |= spread(codes, width) << at.shift;
            memcpy(to, &before, 8);
        }
        for (; left > 0; left--, from++)
            for (int32_t k = 0; k < 8; k += width, to++)
                *to = (uint8_t)((first ? 0 : *to) | (*from >> k & ((1 << width) - 1)) << at.shift);
    }
}

#define TAKE(WIDTH, RUN, HOW, ...) \
    case WIDTH << 8 | RUN: \
        if (first) HOW(w, f, __VA_ARGS__, 1); \
        else HOW(w, f, __VA_ARGS__, 0); \
        break

static void take(const work *w, const lt_field *f, int first) {
    switch (f->width << 8 | f->run) { /* loops of known lengths are several times as fast */
        TAKE(1, 1, take_bytes, 1);
        TAKE(2, 1, take_bytes, 2);
        TAKE(4, 1, take_bytes, 4);
        TAKE(8, 1, take_bytes, 8);
        TAKE(1, 32, take_runs, 1, 32);
        TAKE(2, 32, take_runs, 2, 32);
        TAKE(4, 16, take_runs, 4, 16);
        TAKE(4, 32, take_runs, 4, 32);
        TAKE(4, 64, take_runs, 4, 64);
        TAKE(8, 32, take_runs, 8, 32);
        default: take_runs(w, f, f->width, f->run, first);
    }
}

static int is_sound(const lt_field *f, int32_t nbytes, int32_t columns) {
    const int32_t w = f->width;
    return (w == 1 || w == 2 || w == 4 || w == 8) && f->begin >= 0 && f->count >= 0 && f->begin <= nbytes - f->count &&
           f->shift >= 0 && w + f->shift <= 8 && (int64_t)f->count * 8 / w == columns &&
           (f->run == 1 || (f->run > 0 && f->run % 8 == 0 && f->count % f->run == 0));
}

int32_t lt_unpack_fields(const uint8_t *blocks, int64_t n_blocks, int32_t nbytes, const lt_field *fields,
                         int32_t n_fields, int32_t columns, uint8_t *codes) {
    const work w = {blocks, n_blocks, nbytes, columns, codes};
    for (int32_t i = 0; i < n_fields; i++)
        if (!is_sound(&fields[i], nbytes, columns)) return LT_BAD_ARGUMENT;
    for (int32_t i = 0; i < n_fields; i++) take(&w, &fields[i], i == 0);
    return LT_OK;
}

int32_t lt_pack_fields(const uint8_t *blocks, int64_t rows, int64_t n_blocks, int32_t nbytes, const lt_field *fields,
                       int32_t n_fields, int32_t columns, uint8_t add, int32_t bits, int32_t chunk, uint8_t *data) {
    uint8_t codes[ROWS * LT_MAX_TILE]; /* which stay in the nearest cache */
    if (columns < 1 || columns > LT_MAX_TILE || chunk < 1 || columns % chunk) return LT_BAD_ARGUMENT;
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t begin = 0, n; begin < n_blocks; begin += n) {
            const int64_t high = rows - row < ROWS ? rows - row : ROWS;
            n = n_blocks - begin < LT_MAX_TILE / columns ? n_blocks - begin : LT_MAX_TILE / columns;
            for (int64_t r = 0; r < high; r++) {
                const int32_t wrong = lt_unpack_fields(blocks + ((row + r) * n_blocks + begin) * nbytes, n, nbytes,
                                                       fields, n_fields, columns, codes + r * n * columns);
                if (wrong) return wrong;
            }
            const int32_t wrong = lt_pack_codes(codes, high, n * columns, add, bits, chunk, data);
            if (wrong) return wrong;
            data += n * columns * bits * ROWS / 8;
        }
    return LT_OK;
}

void lt_widen_bf16(const uint16_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

LT_INLINE void decode(const void *codes, int is_signed, int64_t n, float scale, float zero, float *values) {
    for (int64_t i = 0; i < n; i++) {
        const int32_t code = is_signed ? ((const int8_t *)codes)[i] : ((const uint8_t *)codes)[i];
        values[i] = ((float)code - zero) * scale;
    }
}

void lt_decode(const void *codes, int32_t is_signed, int64_t rows, int64_t cols, int64_t group, const float *scale,
               const float *zero, float *values) {
    const uint8_t *from = codes;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t begin = 0; begin < cols; begin += group, scale++, zero++) {
            const int64_t n = cols - begin < group ? cols - begin : group;
            if (is_signed) decode(from, 1, n, *scale, *zero, values);
            else decode(from, 0, n, *scale, *zero, values);
            from += n;
            values += n;
        }
}

/* Vectors of 16 bytes, which gcc keeps in registers on every ISA. */
typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
enum { LANES = 4, SIDE_BY_SIDE = 4 };

void lt_squares(const float *a, const float *b, int64_t n, double *error, double *whole) {
    enum { RUN = 4096 }; /* floats lose nothing that counts in short runs */
    *error = *whole = 0;
    for (int64_t begin = 0; begin < n; begin += RUN) {
        const int64_t end = n - begin < RUN ? n : begin + RUN;
        floats errors[SIDE_BY_SIDE] = {{0}}, wholes[SIDE_BY_SIDE] = {{0}};
        int64_t i = begin;
        for (; i + LANES * SIDE_BY_SIDE <= end; i += LANES * SIDE_BY_SIDE)
#pragma GCC unroll 4
            for (int32_t k = 0; k < SIDE_BY_SIDE; k++) {
                floats x, y;
                memcpy(&x, a + i + LANES * k, sizeof x);
                memcpy(&y, b + i + LANES * k, sizeof y);
                errors[k] += (x - y) * (x - y);
                wholes[k] += x * x;
            }
        for (; i < end; i++) {
            errors[0][0] += (a[i] - b[i]) * (a[i] - b[i]);
            wholes[0][0] += a[i] * a[i];
        }
        for (int32_t k = 0; k < SIDE_BY_SIDE; k++)
            for (int32_t lane = 0; lane < LANES; lane++) {
                *error += (double)errors[k][lane];
                *whole += (double)wholes[k][lane];
            }
    }
}

/* A row's next codes, out of as few words as hold them whole. */
LT_INLINE void unpack_some(const uint32_t *words, int64_t stride, int32_t bits, uint8_t *codes) {
    uint64_t eight[4];
    if (bits == 8) memcpy(codes, words, sizeof *words);
    if (bits == 8) return;
    if (bits == 3) {
        const uint32_t a = words[0], b = words[stride], c = words[2 * stride];
        eight[0] = a & 0xffffff;
        eight[1] = a >> 24 | (b & 0xffff) << 8;
        eight[2] = b >> 16 | (c & 0xff) << 16;
        eight[3] = c >> 8;
    } else
        for (int32_t i = 0; i < 4 / bits; i++) eight[i] = bits == 4 ? words[0] : words[0] >> 16 * i & 0xffff;
    const int32_t n = bits == 3 ? 4 : 4 / bits;
    for (int32_t i = 0; i < n; i++) {
        const uint64_t some = spread(eight[i], bits);
        memcpy(codes + 8 * i, &some, sizeof some);
    }
}

/* Sixteen rows at a time: a line of words. */
LT_INLINE void unpack_columns(const uint32_t *words, int64_t stride, int64_t rows, int64_t cols, int32_t bits,
                              uint8_t *codes) {
    const int32_t taken = bits == 3 ? 3 : 1, each = taken * 32 / bits; /* words, and codes in them */
    for (int64_t first = 0; first < rows; first += ROWS) {
        const int64_t last = first + ROWS < rows ? first + ROWS : rows;
        for (int64_t column = 0, word = 0; column < cols; column += each, word += taken)
            for (int64_t row = first; row < last; row++)
                unpack_some(words + word * stride + row, stride, bits, codes + row * cols + column);
    }
}

int32_t lt_unpack_columns(const uint32_t *words, int64_t stride, int64_t rows, int64_t cols, int32_t bits,
                          uint8_t *codes) {
    if (cols * bits % 32) return LT_BAD_ARGUMENT;
    switch (bits) {
        case 2: unpack_columns(words, stride, rows, cols, 2, codes); break;
        case 3: /* three words hold 32 codes */
            if (cols % 32) return LT_BAD_ARGUMENT;
            unpack_columns(words, stride, rows, cols, 3, codes);
            break;
        case 4: unpack_columns(words, stride, rows, cols, 4, codes); break;
        case 8: unpack_columns(words, stride, rows, cols, 8, codes); break;
        default: return LT_BAD_ARGUMENT;
    }
    return LT_OK;
}

enum { NEAR = LANES * SIDE_BY_SIDE, MAX_VALUES = 16 };

/* A scale's values, and the middles between two of them. */
typedef struct {
    float values[MAX_VALUES], middle[MAX_VALUES];
    uint8_t code[MAX_VALUES];
    int32_t n;
} values_of;

/* n <= 16 floats: a float's place among the values is how many of the middles lie below it. Adds to the squared errors. */
LT_INLINE void nearest_some(const values_of *v, const float *x, int32_t n, float scale, uint8_t *codes, floats *error) {
    const float by = scale == 0 ? 1 : scale;
    float values[NEAR] = {0}, lost[NEAR] = {0};
    int32_t place[NEAR];
    floats some[SIDE_BY_SIDE];
    ints found[SIDE_BY_SIDE] = {{0}};
    memcpy(values, x, sizeof *x * (size_t)n);
    memcpy(some, values, sizeof some);
    for (int32_t k = 0; k < SIDE_BY_SIDE; k++) some[k] /= by;
    for (int32_t j = 0; j + 1 < v->n; j++) {
        const floats limit = {v->middle[j], v->middle[j], v->middle[j], v->middle[j]};
#pragma GCC unroll 4
        for (int32_t k = 0; k < SIDE_BY_SIDE; k++) found[k] -= limit < some[k]; /* true is -1 */
    }
    memcpy(place, found, sizeof place);
    for (int32_t k = 0; k < n; k++) {
        lost[k] = v->values[place[k]] * scale - values[k];
        codes[k] = v->code[place[k]];
    }
    memcpy(some, lost, sizeof some);
    for (int32_t k = 0; k < SIDE_BY_SIDE; k++) *error += some[k] * some[k];
}

int32_t lt_nearest(const float *x, int64_t n_groups, int64_t group, const float *scale, const float *values,
                   const uint8_t *code, int32_t n_values, uint8_t *codes, float *error) {
    values_of v = {.n = n_values};
    if (n_values < 1 || n_values > MAX_VALUES || group < 1) return LT_BAD_ARGUMENT;
    memcpy(v.values, values, sizeof *values * (size_t)n_values);
    memcpy(v.code, code, (size_t)n_values);
    for (int32_t j = 0; j + 1 < n_values; j++) v.middle[j] = (values[j + 1] + values[j]) / 2;
    for (int64_t g = 0; g < n_groups; g++, x += group, codes += group) {
        floats lost = {0};
        int64_t i = 0;
        for (; i + NEAR <= group; i += NEAR) nearest_some(&v, x + i, NEAR, scale[g], codes + i, &lost);
        if (i < group) nearest_some(&v, x + i, (int32_t)(group - i), scale[g], codes + i, &lost);
        error[g] = lost[0] + lost[1] + lost[2] + lost[3];
    }
    return LT_OK;
}
