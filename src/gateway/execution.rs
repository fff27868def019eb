//! An approved request while it is carried out: it ends in exactly one state, whatever becomes of the connection.

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::domain::approval::{Approval, ApprovalState};
use crate::store::Stores;
use crate::store::approvals::Step;

/// An approval in the state `executing`. Dropped before it is ended it becomes `unknown`: the client went, or the
/// exchange was cut, and nobody can say whether upstream acted.
pub struct Execution {
    stores: Stores,
    tasks: TaskTracker,
    approval: Approval,
    ended: bool,
}

impl Execution {
    /// Guards an approval that has just been taken into execution.
    pub const fn new(stores: Stores, tasks: TaskTracker, approval: Approval) -> Self {
        Self { stores, tasks, approval, ended: false }
    }

    /// Ends it. What cannot be written is logged, for the answer is there already; the next start settles it.
    pub async fn end(mut self, state: ApprovalState) {
        self.ended = true;
        let settling = self.tasks.spawn(settle(self.stores.clone(), self.approval.clone(), state));
        let _ = settling.await;
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        // Without a runtime the process is ending; what is left `executing` becomes `unknown` at the next start.
        let (false, Ok(runtime)) = (self.ended, Handle::try_current()) else { return };
        self.tasks.spawn_on(settle(self.stores.clone(), self.approval.clone(), ApprovalState::Unknown), &runtime);
    }
}

async fn settle(stores: Stores, approval: Approval, to: ApprovalState) {
    let step = Step { from: ApprovalState::Executing, to, expires_at: stores.clock.now(), decided: None };
    let written = match stores.approvals.step(&approval.id, &step).await {
        Ok(Some(settled)) => stores.log_approval(&settled).await,
        Ok(None) => return,
        Err(error) => Err(error),
    };
    match written {
        Ok(()) => tracing::info!(approval = approval.id, state = %to, "approval carried out"),
        Err(error) => tracing::error!(%error, approval = approval.id, state = %to, "an approval's end was not written"),
    }
}
