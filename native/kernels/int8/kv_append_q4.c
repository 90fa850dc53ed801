#include "kv_q4.h"
#include "../kv_append.h"

LT_KERNEL(kv_append_q4, lt_rows, run);
