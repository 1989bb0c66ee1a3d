//! From a delivery to a duty: whose it is, whether it may be answered, and whether it has been.

use std::sync::Arc;

use millrace_common::amqp::consumer::Delivery;
use millrace_common::amqp::message::{ReplyKey, RequestMeta, header};
use millrace_common::amqp::properties::Properties;
use millrace_common::protocol::status::Code;
use tokio::sync::OwnedSemaphorePermit;

use super::hostility::hostility;
use super::intake::Intake;
use super::route::{Route, budget_units};
use super::suspects::redeliveries;
use crate::job::{Answer, Duty, Original, Settlement, Verdict};

impl Intake {
    /// Takes the duty on, or finds that the message must not be answered.
    pub(super) async fn receive(
        &self,
        route: &Route,
        delivery: Delivery,
        is_solo: bool,
    ) -> Result<(Duty, RequestMeta), Box<Settlement>> {
        let budget = match is_solo {
            // It must not wait for the lane, which may wait for it.
            true => self.solo.running().await,
            false => {
                let units = budget_units(&delivery).min(route.budget_units);
                Arc::clone(&route.budget).acquire_many_owned(units).await.expect("budgets are never closed")
            }
        };
        let reply_to = self.reply_to(&delivery.properties);
        let hostile = hostility(
            &route.routing_key,
            &delivery.routing_key,
            &delivery.properties,
            reply_to.as_ref().err(),
        );
        let meta = RequestMeta::read(&delivery.properties);
        let known = meta.as_ref().ok();
        let attempt = known.map_or(0, |meta| meta.attempt);
        let tenant = self.tenant(
            known.and_then(|meta| meta.user_id.as_deref()),
            known.and_then(|meta| meta.claimed_tenant.as_deref()),
        );
        // Only where it has come before, and once: an id that somebody uses twice is not to be swallowed.
        let is_answered = (delivery.is_redelivered || is_solo)
            && reply_to.as_ref().is_ok_and(|key| {
                let id = RequestMeta::identity(&delivery.properties);
                key.as_ref().is_some_and(|key| self.answered.take(key.as_str(), id))
            });
        let counts = is_solo || self.counts_redeliveries;
        let before = redeliveries(&delivery.properties, delivery.is_redelivered, counts, &self.own_user);
        let mut duty = self.duty(delivery, reply_to.unwrap_or_default(), attempt, tenant, budget);
        (duty.is_solo, duty.redeliveries) = (is_solo, before);
        duty.accepts_degraded = known.is_none_or(|meta| meta.accepts_degraded);
        duty.replies_per_message =
            known.map_or(1, |meta| u16::try_from(meta.replies_per_message).unwrap_or(u16::MAX));
        if let Some((reason, detail)) = hostile {
            duty.reply_to = None;
            return Err(Box::new((duty, Verdict::Dead { reason, detail })));
        }
        if is_answered {
            return Err(Box::new((duty, Verdict::Done)));
        }
        match meta {
            Ok(meta) => Ok((duty, meta)),
            Err(error) => {
                let answer = Answer::failure(Code::InvalidInput, error.to_string());
                Err(Box::new((duty, Verdict::Reply(answer))))
            }
        }
    }

    pub(super) fn duty(
        &self,
        delivery: Delivery,
        reply_to: Option<ReplyKey>,
        attempt: u32,
        tenant: Arc<str>,
        budget: OwnedSemaphorePermit,
    ) -> Duty {
        Duty {
            request_id: RequestMeta::identity(&delivery.properties).map(str::to_owned),
            correlation_id: delivery.properties.correlation_id().map(str::to_owned),
            reply_to,
            replies_per_message: 1,
            attempt,
            redeliveries: 0,
            is_solo: false,
            accepts_degraded: true,
            descent: None,
            tenant,
            arrived: delivery.received,
            original: Original {
                routing_key: delivery.routing_key,
                properties: delivery.properties,
                body: delivery.body,
            },
            ticket: delivery.ticket,
            budget,
        }
    }

    pub(super) fn tenant(&self, user: Option<&str>, claimed: Option<&str>) -> Arc<str> {
        let Some(user) = user else { return "anonymous".into() };
        match claimed {
            Some(tenant) if self.speaks_for_others(user) => tenant.into(),
            _ => user.into(),
        }
    }

    /// Gateways publish for their callers, workers republish what they pass on.
    fn speaks_for_others(&self, user: &str) -> bool {
        user == self.own_user || self.gateway_users.iter().any(|gateway| gateway == user)
    }

    pub(super) fn reply_to(&self, properties: &Properties) -> Result<Option<ReplyKey>, String> {
        let Some(text) = properties.reply_to() else { return Ok(None) };
        let key = ReplyKey::parse(text).map_err(|error| error.to_string())?;
        match properties.user_id() {
            Some(user) if properties.has_header(header::TENANT) && self.speaks_for_others(user) => {
                Ok(Some(key))
            }
            Some(user) if user != key.user() => {
                Err(format!("`reply_to` belongs to user `{}`, the message comes from `{user}`", key.user()))
            }
            _ => Ok(Some(key)),
        }
    }
}
