"""The verdict on one latent, rule after rule."""

NAN = float("nan")


def verdict(
    label, n_active, nu_error, nu_reconstruction, nu_free=NAN, q_value=NAN, min_active=100, bounds="signed",
    nu_reconstruction_centred=NAN, presence=NAN, share_of_median=NAN, beta_centred=NAN,
):  # fmt: skip
    if n_active == 0:
        return "dead"
    if n_active < min_active:
        return "rare"
    if share_of_median < 1e-3 and label != "undefined":
        return "negligible"
    if label not in ("chat_only", "base_only"):
        return label
    if nu_error != nu_error or nu_reconstruction != nu_reconstruction or beta_centred < 0.1:
        return "undetermined"
    if bounds == "absolute":
        nu_error, nu_reconstruction = abs(nu_error), abs(nu_reconstruction)
        nu_reconstruction_centred = abs(nu_reconstruction_centred)
    if nu_error >= 0.2:
        return "complete_shrinkage"
    is_background = nu_reconstruction_centred < 0.5  # False where nan
    is_decoupled = nu_reconstruction >= 0.5 and not is_background
    if is_decoupled or presence >= 0.4:
        return "latent_decoupling"
    if nu_free > 0.5:
        return "rotated"
    if q_value >= 0.1:
        return "undetermined"
    return "chat_specific" if label == "chat_only" else "base_specific"
