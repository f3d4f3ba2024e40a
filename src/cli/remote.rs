//! stub
use super::send::Job;
use super::summary::Summary;
use crate::error::{Error, Result};
use crate::source::SendSource;
pub(super) fn send(
    _j: &Job<'_>,
    _s: &SendSource,
    _h: &str,
    _p: &str,
    _y: &mut Summary,
) -> Result<()> {
    Err(Error::Usage("x".into()))
}
