//! What the operator provides in files: keys, tokenizers, certificate authorities.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use duo_contract::seal::SealKeys;

use crate::audit;
use crate::audit::keys::MasterKeys;
use crate::auth::direct::SigningKeys;
use crate::prompt::tokens::Tokenizers;

/// The keys that seal requests' bodies.
pub(super) fn read_keys(path: &Path) -> anyhow::Result<SealKeys> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "the seal keys {} cannot be read; DUO_SEAL_KEYS_FILE names the file",
            path.display()
        )
    })?;
    Ok(SealKeys::parse(&text)?)
}

/// The keys that prompts and answers are kept under, where an operator has some.
pub(super) fn read_master_keys(path: Option<&Path>) -> anyhow::Result<Option<MasterKeys>> {
    let Some(path) = path else {
        return Ok(None);
    };
    let keys = MasterKeys::read(path)
        .with_context(|| format!("the file {}; DUO_AUDIT_MASTER_KEY_FILE names it", path.display()))?;
    Ok(Some(keys))
}

/// The tokenizers of the operator's models.
pub(super) async fn read_tokenizers(folder: Option<PathBuf>) -> anyhow::Result<Tokenizers> {
    let Some(folder) = folder else {
        tracing::info!("no DUO_TOKENIZER_DIR: tokens of prompts are estimated from their bytes");
        return Ok(Tokenizers::default());
    };
    // Big files that take a second each to read.
    let loaded = tokio::task::spawn_blocking(move || Tokenizers::load(&folder)).await?;
    let tokenizers = loaded.context("the tokenizers; DUO_TOKENIZER_DIR names their folder")?;
    tracing::info!(names = ?tokenizers.names(), "tokens are counted by tokenizers");
    Ok(tokenizers)
}

/// The keys that sign tokens for IDEs, where the operator has provided some.
pub(super) fn read_signing_keys(path: Option<&Path>) -> anyhow::Result<Option<Arc<SigningKeys>>> {
    let Some(path) = path else {
        tracing::info!(
            "no DUO_SIGNING_KEYS_FILE: there are no tokens for direct connections, IDEs ask through GitLab"
        );
        return Ok(None);
    };
    let named = || {
        format!(
            "the signing keys {}; DUO_SIGNING_KEYS_FILE names the file",
            path.display()
        )
    };
    let text = std::fs::read_to_string(path).with_context(named)?;
    Ok(Some(Arc::new(SigningKeys::parse(&text).with_context(named)?)))
}

/// The keys that sign checkpoints of the audit log, where the operator has provided some.
pub(super) fn read_audit_keys(path: Option<&Path>) -> anyhow::Result<Option<audit::note::SigningKeys>> {
    let Some(path) = path else {
        tracing::warn!(
            "no DUO_AUDIT_KEY_FILE: the audit log is not signed, and nothing proves that it was not altered"
        );
        return Ok(None);
    };
    let named = || {
        format!(
            "the audit keys {}; DUO_AUDIT_KEY_FILE names the file",
            path.display()
        )
    };
    let text = std::fs::read_to_string(path).with_context(named)?;
    Ok(Some(audit::note::SigningKeys::parse(&text).with_context(named)?))
}

/// A client for GitLab, with the operator's certificate authorities.
pub(super) fn http_client(
    ca_file: Option<&Path>,
    redirects: reqwest::redirect::Policy,
) -> anyhow::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .redirect(redirects);
    for certificate in certificates(ca_file)? {
        builder = builder.add_root_certificate(certificate);
    }
    Ok(builder.build()?)
}

/// The private certificate authorities, where an operator has some.
pub(super) fn certificates(ca_file: Option<&Path>) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let Some(path) = ca_file else {
        return Ok(Vec::new());
    };
    let pem = std::fs::read(path).with_context(|| {
        format!(
            "the CA file {} cannot be read (DUO_GITLAB_CA_FILE)",
            path.display()
        )
    })?;
    Ok(reqwest::Certificate::from_pem_bundle(&pem)?)
}
