/* 8-bit weights, one scale per row. */
#define ELEMENT int8_t
#define LOAD vload_i8
#define LOADN vloadn_i8
#include "dense.h"
