/* Keys and values as IEEE half floats. */
#define KV_TYPE uint16_t
#define KV_LOAD vload_f16
#define KV_LOADN vloadn_f16
#define KV_STORE vstore_f16
#define KV_STOREN vstoren_f16
