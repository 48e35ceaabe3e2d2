"""Units with the softsign function, z / (1 + |z|)."""

import mpgraph as mg


class SoftSign(mg.Activation):
    """Between -1 and 1 like tanh, but slower to saturate."""

    inline = True  # plain torch, so it may stand in the generated code

    def apply(self, z):
        """The value of the unit."""
        return z / (1.0 + z.abs())

    def vjp(self, e, z, y):
        """Its derivative, 1 / (1 + |z|)^2, times the error."""
        return e / (1.0 + z.abs()) ** 2
