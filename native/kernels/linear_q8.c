#include "q8.h"

LT_KERNEL(linear_q8, linear_units, linear_run);
