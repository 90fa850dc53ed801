/* The instructions of amx.h in C, for a build that tests the kernels on a CPU without AMX (cmake -DLUTRA_EMULATE_AMX=ON):
 * what Intel's manual says of LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED and TDPBSUD. Where an instruction
 * would fault, this aborts. */
#pragma once
#include <stdlib.h>
#include <string.h>

static _Thread_local struct {
    amx_shapes shapes; /* palette 0: none */
    uint8_t data[8][AMX_ROWS][AMX_BYTES];
} amx;

static inline void amx_require(int condition) {
    if (!condition) abort();
}

static inline void amx_end(void) { memset(&amx, 0, sizeof amx); }

static inline void amx_configure_(const amx_shapes *s) {
    amx_require(s->palette == 1 && s->start_row == 0);
    for (int i = 0; i < 14; i++) amx_require(s->reserved[i] == 0);
    for (int r = 0; r < 16; r++) {
        amx_require(s->rows[r] <= AMX_ROWS && s->bytes[r] <= AMX_BYTES);
        amx_require((s->rows[r] == 0) == (s->bytes[r] == 0));
        amx_require(r < 8 || s->rows[r] == 0);
    }
    amx_end(); /* registers become 0 */
    amx.shapes = *s;
}
#define amx_configure(shapes) amx_configure_(&(shapes))

/* A register that has a shape of whole dwords. */
static inline int amx_usable(int r) {
    return amx.shapes.palette == 1 && amx.shapes.rows[r] > 0 && amx.shapes.bytes[r] % 4 == 0;
}

static inline void amx_zero(int r) {
    amx_require(amx.shapes.palette == 1 && amx.shapes.rows[r] > 0);
    memset(amx.data[r], 0, sizeof amx.data[r]);
}

static inline void amx_load(int r, const void *from, int64_t stride) {
    amx_require(amx_usable(r));
    memset(amx.data[r], 0, sizeof amx.data[r]);
    for (int i = 0; i < amx.shapes.rows[r]; i++)
        memcpy(amx.data[r][i], (const char *)from + i * stride, amx.shapes.bytes[r]);
}

static inline void amx_store(int r, void *to, int64_t stride) {
    amx_require(amx_usable(r));
    for (int i = 0; i < amx.shapes.rows[r]; i++)
        memcpy((char *)to + i * stride, amx.data[r][i], amx.shapes.bytes[r]);
}

/* sums[m][n] += the dot product of codes[m][4 k..], signed, and weights[k][4 n..], unsigned, over k; modulo 2^32. */
static inline void amx_dot(int sums, int codes, int weights) {
    const uint8_t *rows = amx.shapes.rows;
    const uint16_t *bytes = amx.shapes.bytes;
    amx_require(amx_usable(sums) && amx_usable(codes) && amx_usable(weights));
    amx_require(sums != codes && codes != weights && sums != weights);
    amx_require(rows[sums] == rows[codes] && bytes[sums] == bytes[weights] && bytes[codes] == 4 * rows[weights]);
    for (int m = 0; m < rows[sums]; m++) {
        uint32_t row[AMX_BYTES / 4];
        memcpy(row, amx.data[sums][m], sizeof row);
        for (int k = 0; k < rows[weights]; k++)
            for (int n = 0; n < bytes[sums] / 4; n++)
                for (int b = 0; b < 4; b++)
                    row[n] += (uint32_t)((int8_t)amx.data[codes][m][4 * k + b] * amx.data[weights][k][4 * n + b]);
        memset(amx.data[sums][m], 0, AMX_BYTES);
        memcpy(amx.data[sums][m], row, bytes[sums]);
    }
    for (int m = rows[sums]; m < AMX_ROWS; m++) memset(amx.data[sums][m], 0, AMX_BYTES);
}
