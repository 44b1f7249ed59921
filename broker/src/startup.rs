//! To be written.

/// A stand-in until the parts are put together.
///
/// # Errors
/// Always.
pub async fn serve(
    _env: duo_process::config::Env,
    _check_only: bool,
) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not put together yet")
}
