#ifndef KG_SERIAL_H
#define KG_SERIAL_H
#include "vm.h"

int kg_serial_init(kg_serial *s);
void kg_serial_free(kg_serial *s);
/* Whether the transmitter is ready: what is in the VM, and what the host holds, is below the bound. */
int kg_serial_ready(kg_vm *vm);
/* Whether something waits for the host. */
int kg_serial_waits(kg_vm *vm);
/* The host holds so much more; 1: there is room now, and was none. */
int kg_serial_hold(kg_vm *vm, int64_t n);
/* Queue up to a page. If there is no room, it takes `promise`, of one that was ready when its guest looked; without
 * that it is lost, as on any such port. */
void kg_serial_put(kg_vm *vm, const char *text, size_t n, int32_t *promise);
#endif
