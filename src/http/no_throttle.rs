//! The throttle without the feature `throttle`: a type without values, so that `Option<Throttle>` is of size
//! zero and always `None`, and nobody else has to ask for the feature.

use std::net::IpAddr;

use ::http::{Extensions, HeaderMap};

use super::denial::Denial;
use crate::verify::VerifiedKey;

#[derive(Clone)]
pub(crate) enum Throttle {}

impl Throttle {
    pub(crate) fn client(&self, _: &Extensions, _: &HeaderMap) -> Option<IpAddr> {
        match *self {}
    }

    pub(crate) fn denial(&self, _: IpAddr) -> Option<Denial> {
        match *self {}
    }

    pub(crate) fn count_refusal(&self, _: IpAddr) {
        match *self {}
    }

    pub(crate) fn limit(&self, _: IpAddr) -> ClientLimit {
        match *self {}
    }
}

pub(crate) enum ClientLimit {}

impl ClientLimit {
    pub(crate) async fn look_up(
        self,
        _: impl Future<Output = Result<VerifiedKey, Denial>>,
    ) -> Result<VerifiedKey, Denial> {
        match self {}
    }
}
