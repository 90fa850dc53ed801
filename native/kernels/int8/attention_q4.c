#include "kv_q4.h"
#include "attention_codes.h"

LT_KERNEL(attention_q4, units, run);
