/* The thread of a vCPU: it enters KVM_RUN, serves the guest's ports, and stands at the gate. */
#ifndef KG_VCPU_H
#define KG_VCPU_H
#include "vm.h"

/* Functions return >= 0 or -errno. */
/* Let the signals that end KVM_RUN through to a vCPU's fd. */
int kg_vcpu_unblock(int fd);
/* Start the thread, which stands at the gate; returns when it can be signalled. */
int kg_vcpu_start(kg_vcpu *v);
#endif
