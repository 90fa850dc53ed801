/* bfloat16 weights. */
#define ELEMENT uint16_t
#define LOAD vload_bf16
#define LOADN vloadn_bf16
#include "dense.h"
