"""Decentralised algorithms as they were published, in NumPy: what slice rows are compared with.

gradients(x, step) gives every agent's gradient at its own row of x, for the batch of that local step. W needs no more
than `W @ x`. All start at x0 and return x after so many rounds.
"""

import numpy as np


def dsgd(gradients, W, x, rounds, lr, mu=0.0, nesterov=False, local_steps=1, consensus=False):
    """DSGD (adapt, then combine) and D-PSGD (consensus), with heavy-ball or Nesterov momentum."""
    m = 0.0
    for k in range(rounds):
        held = x
        for h in range(local_steps):
            g = gradients(x, k * local_steps + h)
            m = mu * m + g
            x = x - lr * (g + mu * m if nesterov else m)
        x = W @ held + (x - held) if consensus else W @ x
    return x


def adamw(gradients, W, x, rounds, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """AdamW (Loshchilov and Hutter, 2019), then mixing."""
    m = v = 0.0
    for k in range(rounds):
        g = gradients(x, k)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** (k + 1)), v / (1 - betas[1] ** (k + 1))
        x = W @ (x - lr * weight_decay * x - lr * m_hat / (np.sqrt(v_hat) + eps))
    return x


def qg_dsgdm(gradients, W, x, rounds, lr, beta=0.9, mu=0.9, local_steps=1):
    """QG-DSGDm (Lin et al., 2021)."""
    m = 0.0
    for k in range(rounds):
        held = x
        for h in range(local_steps):
            x = x - lr * (beta * m + gradients(x, k * local_steps + h))
        x = W @ x
        m = mu * m + (1 - mu) * (held - x) / (lr * local_steps)
    return x


def gradient_tracking(gradients, W, x, rounds, lr):
    """Gradient tracking (Di Lorenzo and Scutari, 2016)."""
    y = g = gradients(x, 0)
    for k in range(1, rounds + 1):
        x = W @ x - lr * y
        g_next = gradients(x, k)
        y, g = W @ y + g_next - g, g_next
    return x


def d2(gradients, W, x, rounds, lr):
    """D^2 (Tang et al., 2018)."""
    g = gradients(x, 0)
    x_before, g_before, x = x, g, W @ (x - lr * g)
    for k in range(1, rounds):
        g = gradients(x, k)
        x_before, g_before, x = x, g, W @ (2 * x - x_before - lr * (g - g_before))
    return x
