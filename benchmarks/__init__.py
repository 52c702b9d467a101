# SPDX-License-Identifier: Apache-2.0
"""What waiting costs, measured; see README.md."""
