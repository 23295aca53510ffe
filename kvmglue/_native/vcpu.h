/* The thread of a vCPU: it enters KVM_RUN, serves the guest's ports, and stands at the gate. */
#ifndef KG_VCPU_H
#define KG_VCPU_H
#include "vm.h"

/* Functions return >= 0 or -errno. */
/* Have a vCPU's fd let the signals through that end KVM_RUN. */
int kg_vcpu_unblock(int fd);
/* Begin; returns when the thread can be signalled. It stands at the gate. */
int kg_vcpu_start(kg_vcpu *v);
#endif
