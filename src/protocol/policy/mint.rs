//! Minting as a decision: who may be given a token for which audience and scope, by which grant, on whose behalf.

use std::collections::HashSet;

use cedar_policy::{Context, Entities, Entity, Request, RestrictedExpression};

use crate::domain::intent::Principal;
use crate::domain::time::Timestamp;
use crate::domain::verdict::Verdict;
use crate::protocol::policy::{PolicyEngine, uid, workload};

/// The action's name. No operation of a route may have it.
pub const ACTION: &str = "token.mint";

/// Its declaration.
pub(super) const SCHEMA: &str = "entity Audience;\naction \"token.mint\" appliesTo { principal: [Workload], resource: [Audience], context: { grant: String, scope: Set<String>, subject: String, groups: Set<String>, provider?: String, client_auth: String, time: Long } };\n";

/// One question to policy. Everything in it is proved.
#[derive(Clone, Debug)]
pub struct MintIntent<'a> {
    /// The workload, with the groups of its entry and of the statement.
    pub principal: Principal,
    /// The resource's URL.
    pub audience: &'a str,
    /// The grant type's registered name.
    pub grant: &'a str,
    /// What is asked for, after the entry bounded it.
    pub scope: Vec<&'a str>,
    /// On whose behalf.
    pub subject: &'a str,
    /// Groups that the statement came to.
    pub groups: &'a [String],
    /// Name of the provider that spoke.
    pub provider: Option<&'a str>,
    /// How the client proved itself.
    pub client_auth: &'a str,
    /// When.
    pub now: Timestamp,
}

impl PolicyEngine {
    /// Decides whether a token is minted.
    pub fn decide_mint(&self, mint: &MintIntent<'_>) -> Verdict {
        let slice = self.by_action.get(ACTION).unwrap_or(&self.any_action);
        self.judge(&slice.policies, self.mint_question(mint))
    }

    fn mint_question(&self, mint: &MintIntent<'_>) -> Result<(Request, Entities), String> {
        let text = |t: &str| RestrictedExpression::new_string(t.to_owned());
        let set = |items: &mut dyn Iterator<Item = &str>| RestrictedExpression::new_set(items.map(text));
        let mut context = vec![
            ("grant".to_owned(), text(mint.grant)),
            ("scope".to_owned(), set(&mut mint.scope.iter().copied())),
            ("subject".to_owned(), text(mint.subject)),
            ("groups".to_owned(), set(&mut mint.groups.iter().map(String::as_str))),
            ("client_auth".to_owned(), text(mint.client_auth)),
            ("time".to_owned(), RestrictedExpression::new_long(i64::try_from(mint.now.unix()).unwrap_or(i64::MAX))),
        ];
        context.extend(mint.provider.map(|p| ("provider".to_owned(), text(p))));
        let context = Context::from_pairs(context).map_err(|e| format!("the context cannot be built: {e}"))?;
        let principal = uid("Workload", mint.principal.spiffe_id.as_str());
        let audience = uid("Audience", mint.audience);
        let request =
            Request::new(principal.clone(), uid("Action", ACTION), audience.clone(), context, Some(&self.schema))
                .map_err(|e| format!("the request does not fit the schema: {e}"))?;
        let mut entities = vec![
            workload(principal, &mint.principal)?,
            Entity::new_no_attrs(audience, HashSet::new()),
            Entity::with_uid(uid("Person", &mint.principal.owner)),
        ];
        let groups: HashSet<&String> = mint.principal.groups.iter().collect();
        entities.extend(groups.into_iter().map(|g| Entity::with_uid(uid("Group", g))));
        let entities = Entities::from_entities(entities, None).map_err(|e| e.to_string())?;
        Ok((request, entities))
    }
}
