/* What a harvest has found, and what is kept of it for the next one. */
#include "methods.h"

void ut_history_clear(ut_history *h)
{
	h->spans.n = h->kept.n = h->known.n = h->armed.n = h->bare.n = 0;
}

void ut_history_free(ut_history *h)
{
	runs_free(&h->spans);
	runs_free(&h->kept);
	runs_free(&h->known);
	runs_free(&h->armed);
	runs_free(&h->bare);
}

void ut_finding_clear(ut_finding *f)
{
	f->want.n = f->silent.n = f->gone.n = f->fresh.n = 0;
	ut_history_clear(&f->now);
	f->compared = 0;
}

void ut_finding_free(ut_finding *f)
{
	runs_free(&f->want);
	runs_free(&f->silent);
	runs_free(&f->gone);
	runs_free(&f->fresh);
	ut_history_free(&f->now);
}

int ut_finding_add(ut_finding *to, const ut_finding *part)
{
	to->compared += part->compared;
	TRY(runs_append(&to->want, &part->want));
	TRY(runs_append(&to->silent, &part->silent));
	TRY(runs_append(&to->gone, &part->gone));
	TRY(runs_append(&to->fresh, &part->fresh));
	TRY(runs_append(&to->now.spans, &part->now.spans));
	TRY(runs_append(&to->now.kept, &part->now.kept));
	TRY(runs_append(&to->now.known, &part->now.known));
	return runs_append(&to->now.armed, &part->now.armed);
}

void ut_history_take(ut_history *h, ut_history *now)
{
	runs_take(&h->spans, &now->spans);
	runs_take(&h->kept, &now->kept);
	runs_take(&h->known, &now->known);
	runs_take(&h->armed, &now->armed);
	runs_take(&h->bare, &now->bare);
	runs_normalise(&h->spans);
	runs_normalise(&h->known);
}
