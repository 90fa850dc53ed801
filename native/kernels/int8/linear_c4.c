#define BITS 4
#include "codebook.h"

LT_KERNEL(linear_c4, linear_units, linear_run);
