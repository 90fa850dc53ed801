/* 8-bit floats, one scale per row or per 128 of its columns. */
#define ELEMENT uint8_t
#define LOAD vload_f8
#define LOADN vloadn_f8
#define GROUP 128
#include "dense.h"
