#ifndef KG_GATE_H
#define KG_GATE_H
#include "vm.h"

void kg_gate_init(kg_gate *g);
void kg_gate_free(kg_gate *g);
/* The signal that ends KVM_RUN. */
int kg_kick_signal(void);
/* Get a vCPU out of KVM_RUN. */
void kg_kick(kg_vcpu *v);
/* Count in a futex word, and wake the threads that sleep on it. */
void kg_tell(_Atomic uint32_t *word);
/* Begin and end the user's pause. */
void kg_gate_close(kg_vm *vm);
void kg_gate_open(kg_vm *vm);
/* Begin and end a tracker's pause, in the middle of a call. */
void kg_gate_halt(kg_vm *vm);
void kg_gate_go_on(kg_vm *vm);
int kg_gate_closed(kg_vm *vm);
int kg_is_full(kg_vm *vm);
/* Wait until every vCPU is out of KVM_RUN, its last port access completed. */
int kg_wait_parked(kg_vm *vm, int64_t timeout_ns);
int kg_stands(kg_vm *vm, int vcpu);
/* Wake vCPUs that sleep: a mailbox was changed. */
void kg_ring_bell(kg_vm *vm);
/* Wait for an event after the one that `seen` counts; returns the count. */
uint32_t kg_wait_event(kg_vm *vm, uint32_t seen, int64_t timeout_ns);
/* 1: the threshold is reached, and every vCPU stands; 0: timeout. `closing` ends the wait. */
int kg_gate_wait_full(kg_vm *vm, const _Atomic int32_t *closing, int64_t timeout_ns, int64_t stop_ns);
/* A dirty ring is full: close the gate, and wake the host. */
void kg_gate_full(kg_vm *vm);
#endif
