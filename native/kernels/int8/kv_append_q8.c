#include "kv_q8.h"
#include "../kv_append.h"

LT_KERNEL(kv_append_q8, lt_rows, run);
