/* The pause gate of vCPUs that a signal stops. It is a word in shared memory, odd when closed; a vCPU stands
 * when it has written that word to its place. */
#ifndef UT_GATE_H
#define UT_GATE_H
#include "lists.h"

/* The signal that calls a vCPU to the gate, or holds it. */
int ut_gate_signal(void);
int ut_vcpu_of(const ut_shared *s, int pid, int tid);
void ut_vcpu_bind(ut_shared *s, int vcpu, int pid, int tid, int forced);
int ut_vcpu_state(ut_shared *s, int vcpu);
int ut_vcpu_tid(const ut_shared *s, int vcpu);
/* The word of this pause if that vCPU stands at the gate, else 0. */
uint32_t ut_vcpu_stands(ut_shared *s, int vcpu);

/* Wake the tracker: there is something to look at. */
void ut_event(ut_shared *s);
/* Close the gate and call every vCPU to it; returns the word of this pause. */
uint32_t ut_gate_close(ut_shared *s);
/* The same for the tracker, which goes on working on this processor. */
uint32_t ut_gate_close_here(ut_shared *s);
void ut_gate_open(ut_shared *s);
/* Many traps are about to be set. To do that in memory of a thread that runs, if only at the gate, interrupts its
 * processor for each of them. */
void ut_gate_doze(ut_shared *s);
/* They are set, and the gate is about to open: whoever has gone to sleep shall be there. */
void ut_gate_rouse(ut_shared *s);
/* The threshold is reached: close the gate and tell the tracker; returns the word of the pause. */
uint32_t ut_gate_full(ut_shared *s);
/* Call the vCPUs that do not stand at the gate yet. */
void ut_gate_call(ut_shared *s);
/* Signal a vCPU, only once until its handler runs: real-time signals queue up. -errno of tgkill(2). */
int ut_call(ut_vcpu *v);
/* Hold one vCPU until `ut_release`; it stands in its own code. 0: it did not come in time, or has ended. */
int ut_hold(ut_shared *s, int vcpu);
void ut_release(ut_shared *s, int vcpu);
#endif
