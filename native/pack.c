/* Codes out of the bits of blocks, and codes into the layouts of runtime/formats/: what a model takes to open whose
 * file has others. All are loops over bytes or words side by side, which compilers vectorize. */
#include <string.h>

#include "api.h"

enum { ROWS = 16, BYTES = 4, DIGITS = 5, MAX_STEPS = 8 };

/* 16 rows' codes from `column` on in steps of four columns: [steps][16]. Beyond the matrix they are `pad`. */
static void load(const uint8_t *codes, int64_t rows, int64_t cols, int64_t column, int32_t steps, uint8_t pad,
                 uint32_t to[][ROWS]) {
    uint8_t edge[ROWS * MAX_STEPS * BYTES];
    const int64_t width = steps * BYTES;
    const uint8_t *from = codes + column;
    int64_t stride = cols;
    if (rows < ROWS || cols - column < width) {
        const int64_t left = cols - column < width ? cols - column : width;
        memset(edge, pad, sizeof edge);
        for (int32_t r = 0; r < ROWS && r < rows; r++) memcpy(edge + r * width, from + r * cols, (size_t)left);
        from = edge;
        stride = width;
    }
    for (int32_t r = 0; r < ROWS; r++)
        for (int32_t s = 0; s < steps; s++) memcpy(&to[s][r], from + r * stride + s * BYTES, BYTES);
}

/* One plane of a chunk: `width` bits of every code from `shift` up, as many steps to a vector as fit in its bytes. */
static void pack_plane(uint32_t step[][ROWS], int32_t steps, int32_t width, int32_t shift, uint8_t *to) {
    const uint32_t mask = 0x01010101u * ((1u << width) - 1);
    const int32_t each = 8 / width;
    for (int32_t v = 0; v < steps / each; v++) {
        uint32_t vector[ROWS] = {0};
        for (int32_t f = 0; f < each; f++)
            for (int32_t r = 0; r < ROWS; r++) vector[r] |= (step[v * each + f][r] >> shift & mask) << width * f;
        memcpy(to + v * sizeof vector, vector, sizeof vector);
    }
}

int32_t lt_pack_codes(const uint8_t *codes, int64_t rows, int64_t cols, uint8_t add, int32_t bits, int32_t chunk,
                      uint8_t *data) {
    const int32_t low = bits >= 4 ? 4 : bits >= 2 ? 2 : 1, high = bits - low, steps = chunk / BYTES;
    if (bits < 1 || bits > 8 || bits == 7 || (chunk != 16 && chunk != 32) || bits * steps % 8 || low * steps % 8)
        return LT_BAD_ARGUMENT;
    uint32_t seen = 0;
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t column = 0; column < cols; column += chunk, data += bits * steps * 8) {
            uint32_t step[MAX_STEPS][ROWS];
            load(codes + row * cols, rows - row, cols, column, steps, (uint8_t)-add, step);
            for (int32_t s = 0; s < steps; s++) {
                uint8_t *code = (uint8_t *)step[s];
                for (int32_t i = 0; i < ROWS * BYTES; i++) code[i] = (uint8_t)(code[i] + add);
                for (int32_t r = 0; r < ROWS; r++) seen |= step[s][r];
            }
            pack_plane(step, steps, low, 0, data);
            if (high) pack_plane(step, steps, high, low, data + low * steps * 8);
        }
    return (seen | seen >> 8 | seen >> 16 | seen >> 24) & 0xff & ~((1u << bits) - 1) ? LT_BAD_ARGUMENT : LT_OK;
}

int32_t lt_pack_trits(const int8_t *codes, int64_t rows, int64_t cols, uint8_t *data) {
    uint8_t wrong = 0;
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t column = 0; column < cols; column += DIGITS * BYTES, data += ROWS * BYTES) {
            uint32_t step[DIGITS][ROWS];
            uint8_t m[ROWS * BYTES] = {0}; /* the trits, each plus 1, as a number of base 3 */
            load((const uint8_t *)codes + row * cols, rows - row, cols, column, DIGITS, 0, step);
            for (int32_t d = 0; d < DIGITS; d++) {
                const uint8_t *code = (const uint8_t *)step[d];
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

/* A run of bytes holds first the codes in all their lowest bits, then those in the next, and so on. */
static void take_runs(const uint8_t *from, const lt_field *f, uint8_t *codes) {
    const uint64_t mask = 0x0101010101010101u * ((1u << f->width) - 1);
    for (int32_t begin = 0; begin < f->count; begin += f->run)
        for (int32_t k = 0; k < 8; k += f->width)
            for (int32_t i = 0; i < f->run; i += 8, codes += 8) {
                uint64_t word, before;
                memcpy(&word, from + begin + i, 8);
                memcpy(&before, codes, 8);
                before |= (word >> k & mask) << f->shift;
                memcpy(codes, &before, 8);
            }
}

/* Runs of one byte: eight codes at a time, by a table of the codes in a byte. */
static void take_bytes(const uint8_t *from, const lt_field *f, const uint64_t *table, uint8_t *codes) {
    const int32_t each = 8 / f->width;
    for (int32_t left = f->count; left > 0; left -= f->width, codes += 8) {
        const int32_t n = left < f->width ? left : f->width;
        uint64_t word = 0, before = 0;
        for (int32_t j = 0; j < n; j++) word |= table[*from++] << 8 * each * j;
        if (n == f->width) {
            memcpy(&before, codes, 8);
            before |= word << f->shift;
            memcpy(codes, &before, 8);
        } else
            for (int32_t i = 0; i < each * n; i++) codes[i] |= (uint8_t)(word >> 8 * i << f->shift);
    }
}

static void fill_table(uint64_t *table, int32_t width) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        table[byte] = 0;
        for (int32_t k = 0; k < 8; k += width)
            table[byte] |= (uint64_t)(byte >> k & ((1u << width) - 1)) << 8 * (k / width);
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
    uint64_t table[LT_MAX_FIELDS][256];
    if (n_fields < 1 || n_fields > LT_MAX_FIELDS) return LT_BAD_ARGUMENT;
    for (int32_t i = 0; i < n_fields; i++) {
        if (!is_sound(&fields[i], nbytes, columns)) return LT_BAD_ARGUMENT;
        if (fields[i].run == 1) fill_table(table[i], fields[i].width);
    }
    for (int64_t b = 0; b < n_blocks; b++, blocks += nbytes, codes += columns) {
        memset(codes, 0, (size_t)columns);
        for (int32_t i = 0; i < n_fields; i++) {
            const uint8_t *from = blocks + fields[i].begin;
            if (fields[i].run == 1) take_bytes(from, &fields[i], table[i], codes);
            else take_runs(from, &fields[i], codes);
        }
    }
    return LT_OK;
}
