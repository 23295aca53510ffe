/* A network device without state beside its queue. A packet is in a page of the RAM, behind its length. */
#ifndef KG_NET_H
#define KG_NET_H
#include "vm.h"

#include <signal.h>

int kg_net_init(kg_net *net);
void kg_net_free(kg_net *net);
int kg_net_ready(kg_vm *vm);
/* The host holds so many more; 1: there is room now, and was none. */
int kg_net_hold(kg_vm *vm, int64_t n);
/* Whether a packet waits for the host. */
int kg_net_waits(kg_vm *vm);
/* Queue a copy of a packet for the host; see kg_serial_put(). */
void kg_net_put(kg_vm *vm, const kg_packet *packet, int32_t *promise);
/* Whether a packet may have come. */
int kg_net_came(kg_vm *vm);
/* Take the next one from the wire; its length is 0 if there is none. */
void kg_net_receive(kg_vm *vm, kg_packet *packet);
/* Sleep until one may have come, for some time at most, or until a signal comes that is not in `mask`. */
void kg_net_await(kg_vm *vm, const sigset_t *mask, int64_t timeout_ns);
#endif
